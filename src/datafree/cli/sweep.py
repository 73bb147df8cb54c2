"""The commands of many runs at once: a sweep, and its parts made one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datafree.cli import console
from datafree.cli.options import Argument, Command, Option, field_options, given_fields
from datafree.config import build
from datafree.errors import SweepError
from datafree.sweeps.options import SweepOptions

if TYPE_CHECKING:
    from datafree.sweeps.sweeping import Swept

_SWEEP = """Compute every run that FILE asks for: networks x methods x bits x seeds, or any setting.

FILE is YAML. `base` are settings of all runs, as config.yaml has them, and `recipe`; every axis
lists values of a setting, or names several settings at once. A cell is a run in a folder of its
own; one table tells of all. The same command goes on where it stopped: what is finished stays.

\b
Example of FILE:
  base: {images: 64, data: test.npz}
  axes:
    model: [digits_resnet8, net.pt2]
    method: [zeroq, dsg]
    bits: [W8A8, W4A4]
    seed: [0, 1, 2]

\b
Examples:
  datafree sweep digits.yaml --workers 4
  datafree sweep digits.yaml --engine ray --address 10.0.0.1:6379
  datafree sweep digits.yaml --shard 0/8 --output part-0
"""
_MERGE = """Make one of the FOLDERS of a sweep's parts: verify every file, write the table.

Of a folder that all parts wrote to, only the table is written anew.

\b
Examples:
  datafree merge digits
  datafree merge part-0 part-1 part-2 --output digits
"""


def _sweep(file: str, output: str | None, trust_code: bool, **options: Any) -> None:
    from datafree.sweeps.sweeping import sweep

    chosen = build(SweepOptions, given_fields(options), "options")
    place = None if output is None else Path(output)
    tell = console.progress.say
    _shown(
        lambda: console.with_trust(
            lambda trusted: sweep(
                Path(file), chosen, place, trust_code=trusted, progress=console.progress, tell=tell
            ),
            trust_code,
        )
    )


def _merge(folders: Sequence[str], output: str | None) -> None:
    from datafree.sweeps.merging import merge_sweeps

    place = None if output is None else Path(output)
    parts = [Path(folder) for folder in folders]
    _shown(lambda: merge_sweeps(parts, place, progress=console.progress))


def _shown(call: Callable[[], Swept]) -> None:
    """Show the table of a sweep, also of one in which cells failed."""
    failed: SweepError | None = None
    try:
        swept = call()
    except SweepError as error:
        failed, swept = error, error.swept
    console.out.print(swept.text, markup=False, highlight=False, soft_wrap=True)
    where = f"written to {swept.folder}: cells, log, sweep.yaml, table.jsonl, table.txt"
    console.out.print(where, markup=False, highlight=False, soft_wrap=True)
    if failed is not None:
        raise failed


_OUTPUT = "Folder to write; a sweep goes on in its folder.  [default: FILE without its ending]"
_WHOLE = "Folder of the whole, which runs are copied to.  [default: the first of FOLDERS]"

sweep = Command(
    "sweep",
    help=_SWEEP,
    callback=_sweep,
    params=[
        Argument("file", "Model", "YAML file of the sweep."),
        *field_options(SweepOptions),
        Option(["--output"], "Output", metavar="FOLDER", help=_OUTPUT),
        Option(
            ["--trust-code"], "Output", is_flag=True,
            help="Run Python code that FILE names (a network's function, a method, a measure):"
            " read it first. In a terminal you are asked.",
        ),
    ],
)  # fmt: skip
merge = Command(
    "merge",
    help=_MERGE,
    callback=_merge,
    params=[
        Argument("folders", "Model", "Folders that datafree sweep wrote.", several=True),
        Option(["--output"], "Output", metavar="FOLDER", help=_WHOLE),
    ],
)
