"""Options of the command line, made from the fields of configurations, and the help of commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import click
import yaml

from datafree.config import Frozen
from datafree.config.fields import PANELS, Described, describe, in_panels, option_name, panel_of
from datafree.config.options import FolderOptions
from datafree.errors import ConfigError

_WIDTH = 80
_VALUES = {"int": "N", "float": "X", "Path": "FILE", "str": "TEXT"}


class Option(click.Option):
    """An option that stands in a panel of its command's help."""

    def __init__(self, names: Sequence[str], panel: str, **settings: Any) -> None:
        """Create it; `settings` are those of `click.Option`."""
        super().__init__(names, **settings)
        self.panel = panel


class Argument(click.Argument):
    """An argument that stands in a panel of its command's help."""

    def __init__(
        self, name: str, panel: str, text: str, *, required: bool = True, several: bool = False
    ) -> None:
        """Create it with the `text` of its help; `several` takes all that are given."""
        super().__init__([name], required=required, nargs=-1 if several else 1)
        self.panel, self.text = panel, text


class Command(click.Command):
    """A command whose help has a panel for every kind of option and fits 80 columns."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the panels; names are never cut, long ones have their text below."""
        rows: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        for parameter in self.get_params(ctx):
            panel = getattr(parameter, "panel", "Output")
            if isinstance(parameter, Argument):
                rows[panel].append((parameter.make_metavar(ctx), parameter.text))
            elif (record := parameter.get_help_record(ctx)) is not None:
                rows[panel].append(record)
        for panel, records in rows.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records, col_max=26)


class Group(click.Group):
    """A group whose help has the whole first sentence of every command."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a row per command; the base class cuts what does not fit into one line."""
        rows = [
            (name, command.get_short_help_str(limit=500)) for name, command in self.commands.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def field_option(cls: type[Frozen], name: str, *, default: str | None = None) -> Option:
    """The option that sets field `name` of `cls`.

    Args:
        cls: a configuration.
        name: of the field.
        default: what the command takes where it is not given, if not the field's own default;
            `required` where it has to be given.
    """
    field = describe(cls, name)
    if default is not None:
        field = replace(field, default=default)
    settings: dict[str, Any] = {"help": _help(field), "default": None}
    option = option_name(name)
    if field.kind == "bool":
        names = [option if field.shown.flag else f"{option}/--no-{option.removeprefix('--')}", name]
        settings["is_flag"] = True
    else:
        names = [option, name]
        settings["metavar"] = _value(field)
        settings["multiple"] = field.kind == "dict" or field.shown.repeated
        if field.shown.repeated:
            settings["callback"] = _listed
    if field.shown.short:
        names.insert(0, field.shown.short)
    return Option(names, panel_of(cls, name), **settings)


def field_options(cls: type[Frozen], *, without: Iterable[str] = ()) -> list[Option]:
    """The options of all fields of `cls` that are no secret of the configuration."""
    names = [name for name in in_panels(cls) if name not in set(without)]
    return [field_option(cls, n) for n in names if not describe(cls, n).shown.hidden]


def given_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as fields of a configuration.

    Raises:
        ConfigError: an option that is a pair has no equals sign.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, tuple):
            if value:
                found[name] = _pairs(name, [str(part) for part in value])
        elif value is not None:
            found[name] = value
    return found


def run_options() -> list[Option]:
    """Where a run goes, and where it went on."""
    resume = Option(
        ["--resume"], "Output", metavar="FOLDER",
        help="Go on with the interrupted run in this folder; no other option is needed.",
    )  # fmt: skip
    dry = Option(
        ["--dry-run"], "Output", is_flag=True,
        help="Say what would be done, how long it would take here and how much memory, and do"
        " nothing.",
    )  # fmt: skip
    output = field_option(FolderOptions, "output", default="run")
    return [output, field_option(FolderOptions, "force"), resume, dry, trust_option()]


def trust_option() -> Option:
    """Whether code that a run's files name may run."""
    return Option(
        ["--trust-code"], "Output", is_flag=True,
        help="Run Python code that the run's files name (a network's function, a method, a"
        " measure): read it first. In a terminal you are asked.",
    )  # fmt: skip


def _listed(ctx: click.Context, option: click.Parameter, given: tuple[str, ...]) -> Any:
    """The values of a repeated option; None where there are none."""
    del ctx, option
    return list(given) or None


def _pairs(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` as a mapping, values as in YAML."""
    found: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"{option_name(name)} {text!r} is not of the form name=value")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"the value of {option_name(name)} {text!r} is not YAML") from None
    return found


def _value(field: Described) -> str:
    if field.shown.value:
        return field.shown.value
    if field.choices:
        return f"[{'|'.join(field.choices)}]"
    return _VALUES.get(field.kind, "TEXT")


def _default(field: Described) -> str:
    return "required" if field.default == "required" else f"default: {field.default}"


def _help(field: Described) -> str:
    """Meaning, default and range, as the help shows them."""
    facts = [] if field.kind == "dict" or field.shown.flag else [_default(field)]
    if field.allowed and not field.choices:
        facts.append(field.allowed)
    if field.kind == "dict" or field.shown.repeated:
        facts.append("repeatable")
    ending = f"  [{'; '.join(facts)}]" if facts else ""
    return field.meaning.replace("`", "") + ending
