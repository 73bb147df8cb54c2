"""The help of every command, as it looks in a terminal of 80 columns."""

from __future__ import annotations

import inspect
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from pydantic_core import PydanticUndefined

import datafree
from conftest import ROOT
from datafree.api import DistillCall, QuantizeCall, SynthesizeCall
from datafree.cli.app import app
from datafree.cli.options import Option
from datafree.config import Frozen, RunConfig
from datafree.config.fields import PANELS, describe, option_name

COMMANDS = sorted(app.commands)
ONLY_COMMAND_LINE = {"config", "resume", "help", "dry_run", "trust_code"}  # of a configuration file
CALLS: dict[str, type[Frozen]] = {
    "quantize": QuantizeCall,
    "distill": DistillCall,
    "synthesize": SynthesizeCall,
}


def help_of(*words: str, width: int = 80) -> str:
    env = {"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)}
    done = CliRunner(env=env).invoke(app, [*words, "--help"], terminal_width=width)
    assert done.exit_code == 0
    return done.output


def options_of(command: str) -> list[click.Option]:
    found = app.commands[command].params
    return [option for option in found if isinstance(option, click.Option)]


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_80_columns_and_cuts_no_name(command: tuple[str, ...]) -> None:
    shown = help_of(*command)
    assert max(map(len, shown.splitlines())) <= 80
    usage = ("[OPTIONS] COMMAND [ARGS]...", "RUNS...", "FOLDERS...")
    for part in usage:
        shown = shown.replace(part, "")
    assert "…  " not in shown and "..." not in shown
    if command:
        for option in options_of(*command):
            for name in (*option.opts, *option.secondary_opts):
                assert name in shown.replace("\n", " ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_default_is_shown(command: str) -> None:
    shown = " ".join(help_of(command).split())
    for option in options_of(command):
        flag = option.is_flag and not option.secondary_opts
        if flag or option.name in ONLY_COMMAND_LINE:
            continue
        text = option.help or ""
        assert "[default: " in text or "repeatable]" in text or "[required]" in text, option.name
        assert " ".join(text.split()) in shown, option.name


@pytest.mark.parametrize("command", CALLS)
def test_the_default_shown_is_the_default(command: str) -> None:
    """What the help says is read back and compared with what the field has."""
    for option in options_of(command):
        name = str(option.name)
        if name not in RunConfig.model_fields or option.multiple:
            continue
        cls = CALLS[command]
        default = cls.model_fields[name].get_default(call_default_factory=True, validated_data={})
        shown = str(option.help).partition("[default: ")[2].partition("]")[0].split(";")[0]
        if default is PydanticUndefined:  # has to be given
            continue
        if default is None or describe(cls, name).shown.default:
            assert shown == describe(cls, name).shown.default
        elif isinstance(default, bool):
            assert shown == ("yes" if default else "no")
        elif isinstance(default, tuple):
            assert tuple(int(part) for part in shown.split(",")) == default
        else:
            assert type(default)(shown) == default


@pytest.mark.parametrize("command", CALLS)
def test_both_doors_have_the_same_options(command: str) -> None:
    """Names of the command line and of the Python function; each has a few things of its own."""
    door = getattr(datafree, command)
    python = set(inspect.signature(door).parameters) - {"model", "progress"}
    terminal = {str(option.name) for option in options_of(command)} - ONLY_COMMAND_LINE
    if command == "synthesize":  # a file on one side, an object on the other
        terminal -= {"output", "force"}
    assert python == terminal
    for option in options_of(command):
        if option.name in python:
            assert option_name(str(option.name)) in option.opts


@pytest.mark.parametrize("command", CALLS)
def test_the_python_documentation_says_the_same(command: str) -> None:
    text = " ".join((inspect.getdoc(getattr(datafree, command)) or "").split())
    for name in inspect.signature(getattr(datafree, command)).parameters:
        if name != "model":
            field = describe(CALLS[command], name)
            assert f"{name}: {field.meaning}" in text
            assert not field.default or f"Default: {field.default}." in text


def test_the_reference_pages_are_what_the_fields_say() -> None:
    script = ROOT / "scripts" / "reference.py"
    if not script.exists():
        pytest.skip("no scripts in this copy")
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_panels_hold_all_options() -> None:
    for command in CALLS:
        shown = help_of(command)
        panels = {option.panel for option in options_of(command) if isinstance(option, Option)}
        assert panels <= set(PANELS)
        assert [p for p in PANELS if f"\n{p}:" in shown] == [p for p in PANELS if p in panels]


def test_a_method_is_explained() -> None:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["methods", "dsg"])
    assert done.exit_code == 0
    shown = " ".join(done.output.split())
    for part in (
        "dsg, image method", "From: Zhang et al. (2021)", "epsilon default 0.9; 0 to 1",
        "Quantile of the gaps taken as margin; 0 means no slack.", "delta_l",
    ):  # fmt: skip
        assert part in shown
    assert max(map(len, done.output.splitlines())) <= 80
