"""One clear line for every mistake at the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import INPUT, QUICK, Command, refused

MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown model": (("digits_resnet9",), ("unknown model", "digits_resnet8")),
    "unknown method": (("digits_resnet8", "--method", "zeroqq"), ("zeroqq", "zeroq")),
    "unknown calibrator": (("digits_resnet8", "--calibrator", "minmx"), ("minmx", "minmax")),
    "weights out of range": (("digits_resnet8", "--bits", "W9A8"), ("weights", "2 to 8")),
    "activations out of range": (("digits_resnet8", "--bits", "W4A1"), ("activations", "2 to 8")),
    "malformed bits": (("digits_resnet8", "--bits", "eight"), ("eight", "W4A8")),
    "superscript bits": (("digits_resnet8", "--bits", "W²A8"), ("W4A8",)),
    "unknown reconstruction": (
        ("digits_resnet8", "--reconstruction", "adaroun"),
        ("adaroun", "adaround"),
    ),
    "reconstruction option without one": (
        ("digits_resnet8", "--reconstruction-option", "iterations=3"),
        ("reconstruction_options", "name one"),
    ),
    "average and budget": (
        ("digits_resnet8", "--average-bits", "4", "--budget", "1MB"),
        ("average_bits and budget exclude each other",),
    ),
    "no budget for the bits": (
        ("digits_resnet8", "--candidate-bits", "2,4"),
        ("average_bits or budget",),
    ),
    "malformed candidate bits": (
        ("digits_resnet8", "--average-bits", "4", "--candidate-bits", "2;4"),
        ("candidate_bits", "integer"),
    ),
    "small budget": (("digits_resnet8", "--budget", "1kB"), ("1kB", "the least is", "2 bits")),
    "weight range": (("digits_resnet8", "--weight-range", "max"), ("weight_range", "minmax")),
    "malformed option": (("digits_resnet8", "-o", "iterations"), ("iterations", "name=value")),
    "unknown option": (
        ("digits_resnet8", "--method", "zeroq", "-o", "steps=3"),
        ("steps", "iterations"),
    ),
    "policy": (("digits_resnet8", "--policy", "some"), ("policy", "first_last_8")),
    "weight type": (("digits_resnet8", "--weight-type", "int9"), ("weight_type", "uint8")),
    "images": (("digits_resnet8", "--images", "0"), ("images",)),
    "device": (("digits_resnet8", "--device", "abacus"), ("abacus", "auto, cpu")),
    "no shape": (("net.py:net",), ("input_shape",)),
    "no mean": (("net.py:net", "--input-shape", "3,8,8"), ("mean and std",)),
    "wrong shape": (
        ("net.py:net", "--input-shape", "3,9,9", "--mean", "0,0,0", "--std", "1,1,1"),
        ("3, 9, 9", "input_shape"),
    ),
    "shape of two": (("net.py:net", "--input-shape", "8,8"), ("input_shape", "(8, 8)")),
    "shape of words": (("net.py:net", "--input-shape", "a,b,c"), ("input_shape", "3,224,224")),
    "mean of two": (
        ("net.py:net", "--input-shape", "3,8,8", "--mean", "0,0", "--std", "1,1,1"),
        ("mean has 2 values",),
    ),
    "no batch norm": (("net.py:net", *INPUT, "--method", "dsg"), ("dsg", "noise")),
    "not finite": (("net.py:broken", *INPUT), ("NaN", "0.weight")),
    "unknown factory": (("net.py:nett", *INPUT), ("nett", "net")),
    "no such file": (("other.py:net", *INPUT), ("other.py",)),
    "absent weights": (("digits_resnet8", "--weights-file", "no.safetensors"), ("no.safetensors",)),
    "damaged weights": (
        ("digits_resnet8", "--weights-file", "bad.safetensors"),
        ("bad.safetensors",),
    ),
    "foreign weights": (
        ("digits_resnet8", "--weights-file", "foreign.safetensors"),
        ("does not fit",),
    ),
    "damaged archive": (("bad.pt2",), ("bad.pt2",)),
    "labels out of range": (("digits_resnet8", "--data", "labels.npz"), ("label 10", "0 to 9")),
    "no data": (("digits_resnet8", "--data", "no.npz"), ("no.npz",)),
    "neither": ((), ("MODEL", "--config")),
    "both": (("digits_resnet8", "--config", "config.yaml"), ("MODEL", "--config")),
    "no config": (("--config", "no.yaml"), ("no.yaml",)),
    "foreign config": (("--config", "bad.pt2"), ("bad.pt2",)),
    "output exists": (("digits_resnet8", "--output", "taken"), ("taken exists", "--force")),
    "not a run": (("digits_resnet8", "--output", "taken", "--force"), ("not a run",)),
}


@pytest.mark.usefixtures("material")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_line_and_code_2(
    datafree_command: Command, tmp_path: Path, mistake: str
) -> None:
    arguments, parts = MISTAKES[mistake]
    refused(datafree_command("quantize", *arguments), *parts)
    assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("evaluate", "nowhere"), "nowhere"),
        (("export", "nowhere", "--output", "a.onnx"), "nowhere"),
        (("export", "nowhere", "--output", "a.onx"), "onnx"),
        (("synthesize", "digits_resnet9"), "digits_resnet8"),
        (("synthesize", "digits_resnet8", "--method", "zeroqq"), "zeroq"),
    ],
)
def test_mistakes_of_other_commands(
    datafree_command: Command, arguments: tuple[str, ...], part: str
) -> None:
    refused(datafree_command(*arguments), part)


def test_a_place_that_cannot_be_written_is_told_in_one_line(
    datafree_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = datafree_command("quantize", "digits_resnet8", *QUICK, "--output", "file/run")
    refused(done, "cannot write", "file/run")


def test_unknown_flags_are_usage_errors(datafree_command: Command) -> None:
    done = datafree_command("quantize", "digits_resnet8", "--bit", "W8A8")
    refused(done, "No such option", "--bit", "--bits", "datafree quantize --help")


def test_an_unknown_recipe_is_one_line(datafree_command: Command) -> None:
    refused(datafree_command("quantize", "digits_resnet8", "--recipe", "bst"), "recipe", "best")


@pytest.mark.usefixtures("no_export", "material")
def test_after_a_mistake_the_corrected_command_works(datafree_command: Command) -> None:
    wrong = (*QUICK, "--calibrator", "minmx")
    refused(datafree_command("quantize", "digits_resnet8", *wrong), "minmax")
    assert datafree_command("quantize", "digits_resnet8", *QUICK).code == 0
