"""Folders of the parts of a sweep, made one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from datafree.errors import ConfigError, OutputError
from datafree.files import TEMPORARY
from datafree.progress import Progress, silent
from datafree.sweeps.folder import Folder, digest, finished
from datafree.sweeps.plan import Cell
from datafree.sweeps.sweeping import Swept, checked
from datafree.sweeps.table import rows_of, write_table


def merge_sweeps(
    folders: Sequence[Path], output: Path | None = None, *, progress: Progress = silent
) -> Swept:
    """Make one sweep of its parts, and write its table.

    Every file is compared with the hash that its run wrote. A cell that several folders have is
    taken once, if they have the same.

    Args:
        folders: that `sweep` wrote, of the same file.
        output: folder of the whole, which may be one of them; None is the first. Runs are copied.
        progress: shows how many cells are copied.

    Raises:
        SweepError: cells failed or are missing; the table was written, and the error has it.
        ConfigError: folders of different sweeps, or with different results of one cell.
        OutputError: the whole cannot be written.
    """
    if not folders:
        raise ConfigError("give at least one folder that datafree sweep wrote")
    parts = [Folder(folder) for folder in folders]
    plan = parts[0].plan()
    for part in parts[1:]:
        if part.plan() != plan:
            raise ConfigError(
                f"{part.path} and {parts[0].path} are of different sweeps: their sweep.yaml differ"
            )
    cells = plan.runs(f"sweep {parts[0].path}")
    whole = Folder(output or folders[0])
    whole.claim(plan)
    with progress("cells", len(cells)) as step:
        for cell in cells:
            _merged(cell, parts, whole)
            step(1)
    rows = rows_of(whole, cells)
    return checked(Swept(whole.path, rows, write_table(whole, rows), 0), list(rows))


def _merged(cell: Cell, parts: Sequence[Folder], whole: Folder) -> None:
    """Bring one cell into the `whole`."""
    found: dict[str, Folder] = {}
    for part in (whole, *parts):
        stored = finished(part.cell(cell.name), cell.config)
        if stored is not None:
            found.setdefault(digest(stored.record), part)
    if len(found) > 1:
        one, other, *_ = found.values()
        raise ConfigError(
            f"{one.path} and {other.path} have different results of cell {cell}: computed with"
            " other versions, threads or weights; remove one of them"
        )
    source = next(iter(found.values()), None)
    if source is None:
        source = next((part for part in parts if part.log(cell.name).error()), None)
    if source is None or source.path.resolve() == whole.path.resolve():
        return
    try:
        if source.log(cell.name).path.is_file():
            shutil.copyfile(source.log(cell.name).path, whole.log(cell.name).path)
        if found:
            _copy(source.cell(cell.name), whole.cell(cell.name))
    except OSError as error:
        raise OutputError(f"cannot write {whole.path}: {error.strerror or error}") from error


def _copy(source: Path, target: Path) -> None:
    """Copy the folder of a run, which is there whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=target.parent) as aside:
        made = Path(aside) / target.name
        shutil.copytree(source, made)
        if target.exists():  # a run that never ended
            target.rename(Path(aside) / "unfinished")
        made.rename(target)
