"""The command line of the house: ``python -m benchmarks``."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import click

from benchmarks.place import Place
from benchmarks.record import latest
from benchmarks.table import SEED, Cell, Table, Where, choose, load_tables
from datafree.config.parsing import seconds
from datafree.errors import ConfigError, DatafreeError, UnknownNameError

_NAMED = 8  # missing cells that are named


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 90},
    epilog="Start with `python -m benchmarks list`, then `list TABLE`, then"
    " `run TABLE --only AXIS=VALUE --seeds 1`.",
)
def app() -> None:
    """Measure datafree: fill tables cell by cell, and render them into pages.

    A table is a file of benchmarks/tables: what all its cells share, axes whose values change
    fields of a run, seeds, and how pages show it. A cell that was measured is one JSON line in
    benchmarks/results and is not measured again; several processes may fill one table. Pages are in
    docs/results.

    Networks and images that are no part of the repository lie in $DATAFREE_SHARED.
    """


@app.command("list", short_help="List tables, or what one is made of.")
@click.argument("names", metavar="[TABLE]...", nargs=-1)
@click.pass_obj
def list_(place: Place, names: tuple[str, ...]) -> None:
    """List tables with cells measured and wanted; of those named axes and values too."""
    for table in choose(load_tables(place.house / "tables"), names):
        wanted, found = table.wanted(), latest(table, place)
        done = sum(cell in found for cell in wanted)
        stale = sum(bool(record.overtaken(table)) for record in found.values())
        told = f"{done:3} of {len(wanted):3}"
        told += f", {len(found) - done} more" if len(found) > done else ""
        told += f", {stale} overtaken" if stale else ""
        click.echo(f"{table.name:22} {told}: {table.title}")
        if names:
            for axis, values in table.axes.items():
                click.echo(f"  {axis}: {' | '.join(values)}")
            seeds = sorted({cell.seed for cell in wanted})
            click.echo(f"  {SEED}: {' | '.join(map(str, seeds))}")
            click.echo(f"  views: {' | '.join(table.views) or 'none'}")


@app.command(short_help="Measure the missing cells of tables.")
@click.argument("names", metavar="TABLE...", nargs=-1, required=True)
@click.option(
    "--seeds", type=click.IntRange(1), metavar="N", help="Seeds 0 to N - 1 for all cells."
)
@click.option("--budget", metavar="TIME", help="Begin no cell that takes longer than is left: 20m.")
@click.option(
    "--only",
    "chosen",
    multiple=True,
    metavar="AXIS=VALUE",
    help="Cells with this value; several of one axis add up. `seed` is an axis too.",
)
@click.option("--stale", is_flag=True, help="Measure cells again that the library has overtaken.")
@click.option("--shard", "part", metavar="I/N", help="Every N-th of these cells from the I-th on.")
@click.option("--again", is_flag=True, help="Measure cells again that have a record.")
@click.option("--device", default="cpu", help="Where images are made and students learned: cuda.")
@click.pass_obj
def run(  # noqa: PLR0913 - one for each option
    place: Place, names: tuple[str, ...], seeds: int | None, budget: str | None,
    chosen: tuple[str, ...], stale: bool, again: bool, part: str | None, device: str,
) -> None:  # fmt: skip
    """Measure the missing cells of each TABLE, a record for each as soon as it is there.

    Interrupt it at any time: the same command goes on with the next cell. With --budget it ends in
    time and says what is missing; how long a cell takes is judged by those measured before.
    """
    limit, only, tables = _time(budget), _pairs(chosen), load_tables(place.house / "tables")
    wanted = choose(tables, names)
    for table in wanted:
        table.check(only)
    from benchmarks.kinds import Bench, kind_and_config
    from benchmarks.runner import Asked, fill, missing
    from datafree.cli import console
    from datafree.config import build
    from datafree.progress import Progress
    from datafree.sweeps.options import SweepOptions

    asked = Asked(
        only, None if seeds is None else tuple(range(seeds)), stale, again,
        build(SweepOptions, {"shard": part}, "options").shard,
        None if limit is None else time.monotonic() + limit,
        shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    )  # fmt: skip
    for table in wanted:
        for cell in missing(table, place, asked):
            kind_and_config(table.fields(cell), f"{table.name}, {cell}")

    def measure(table: Table, cell: Cell, progress: Progress) -> dict[str, Any]:
        kind, config = kind_and_config(table.fields(cell), f"{table.name}, {cell}")
        return kind.measure(config, Bench(place, progress, device))

    for table in wanted:
        done = fill(table, asked, place, measure, console.progress, click.echo)
        click.echo(f"{table.name}: {done.measured} measured, {len(done.missing)} missing")
        if done.expected is not None:
            click.echo(f"  no time left for one of about {done.expected:.0f} s")
        for cell in done.missing[:_NAMED]:
            click.echo(f"  missing: {cell}")
        if len(done.missing) > _NAMED:
            click.echo(f"  and {len(done.missing) - _NAMED} more")


@app.command(short_help="Make the tables of pages anew.")
@click.argument("names", metavar="[TABLE]...", nargs=-1)
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a page is out of date.")
@click.pass_obj
def render(place: Place, names: tuple[str, ...], check: bool) -> None:
    """Make tables of pages anew from the records; all of them where none are named.

    Where none are named, so are our columns of benchmarks/targets.csv.
    """
    from benchmarks import attacks, published, reproduction, scaling, targets
    from benchmarks.page import Source
    from benchmarks.page import render as rendered
    from datafree.files import write_text

    tables = load_tables(place.house / "tables")
    choose(tables, names)

    @cache
    def source(name: str) -> Source:
        if name not in tables:
            raise UnknownNameError("table", name, tables)
        return Source(tables[name], latest(tables[name], place))

    rows = [] if names else targets.read(place.targets)
    new: dict[Path, str] = {}
    if rows:
        new[place.targets] = targets.written(rows, source, published.command)
    for path in place.rendered:
        try:
            text = rendered(path.read_text(encoding="utf-8"), source, names)
            if not names:
                text = reproduction.render(attacks.render(text, place), rows, source)
                text = scaling.render(text, source)
        except ConfigError as error:
            raise ConfigError(f"{path.name}: {error}") from None
        new[path] = text
    changed = [path for path, text in new.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        click.echo(f"{path.name} {'is out of date' if check else 'written'}")
        if not check:
            write_text(path, new[path])
    if check and changed:
        sys.exit(1)


def _pairs(chosen: Sequence[str]) -> Where:
    found: dict[str, tuple[str, ...]] = {}
    for text in chosen:
        axis, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--only {text} is no pair: write AXIS=VALUE, such as bits=W4A4")
        found[axis] = (*found.get(axis, ()), value)
    return found


def _time(budget: str | None) -> float | None:
    try:
        return seconds(budget)
    except ValueError as error:
        raise ConfigError(f"--budget: {error}") from None


def main(arguments: Sequence[str] | None = None, place: Place | None = None) -> NoReturn:
    """Run the command line; a mistake gives one line and exit code 2."""
    name, where = "python -m benchmarks", place or Place.here()
    try:
        app.main(arguments, name, standalone_mode=False, obj=where)
        sys.exit(0)
    except click.exceptions.NoArgsIsHelpError as asked:
        click.echo(asked.format_message())
        sys.exit(0)
    except click.Abort:
        click.echo("interrupted; the same command goes on where it stopped", err=True)
        sys.exit(130)
    except (click.ClickException, DatafreeError) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"error: {text}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
