"""Attacks by files that name code: nothing of it runs before somebody says that it may."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import datafree
from datafree.cli.app import app
from datafree.config import RunConfig
from datafree.config.fields import describe
from datafree.errors import UntrustedCodeError
from datafree.files import sha256
from datafree.models.hubs import HUBS
from datafree.runs.trust import check_trusted, code_in
from datafree.user_code import LIBRARIES

BUILD = """
from pathlib import Path
Path("{ran}").touch()
from datafree.zoo import digits_resnet8
def build():
    return digits_resnet8()
def measure(outputs, labels):
    Path("{ran}").touch()
    return 0.0
"""
QUICK: dict[str, Any] = {
    "input_shape": (1, 8, 8), "method": "noise", "images": 8, "holdout": 8, "isolate": False,
    "latency": False, "report": False, "mean": (0.0,), "std": (1.0,),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network somebody's file builds; the file is then one that leaves a trace."""
    folder = tmp_path_factory.mktemp("stranger")
    code = folder / "net.py"
    code.write_text(BUILD.format(ran=folder / "harmless"))
    datafree.quantize(f"{code}:build", output=folder / "run", keep_teacher=False, **QUICK)
    pixels, labels = np.zeros((4, 8, 8), np.uint8), np.zeros(4, int)
    np.savez(folder / "test.npz", images=pixels, labels=labels)
    code.write_text(BUILD.format(ran=folder / "ran"))
    return folder


def one(outputs: Any, labels: Any) -> float:
    return 1.0


def call(*words: str | Path) -> None:
    app.main([str(word) for word in words], standalone_mode=False)


@pytest.mark.integration
@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "run", "--data", "test.npz"),
        ("export", "run", "--output", "again.onnx"),
        ("benchmark", "run"),
        ("report", "run"),
        ("quantize", "--config", "run/config.yaml", "--output", "again"),
        ("quantize", "--config", "run/config.yaml", "--dry-run"),
        ("quantize", "--resume", "halfway"),
        ("distill", "--resume", "halfway"),
    ],
    ids=" ".join,
)
def test_no_command_runs_code_of_a_file_unasked(
    made: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    if "halfway" in words and not Path("halfway").exists():
        Path("halfway").mkdir()
        shutil.copy("run/config.yaml", "halfway")
    with pytest.raises(UntrustedCodeError, match=r"net\.py:build \(model\): read it, and pass"):
        call(*words)
    assert not Path("ran").exists()
    assert not Path("again").exists()


@pytest.mark.integration
def test_python_does_not_either_and_does_when_it_may(made: Path) -> None:
    run = datafree.load_run(made / "run")
    for use in (
        lambda: run.student,
        lambda: run.export(made / "x.onnx"),
        lambda: run.evaluate(made / "test.npz"),
        lambda: datafree.benchmark(run),
    ):
        with pytest.raises(UntrustedCodeError, match="trust_code=True in Python"):
            use()
    assert not (made / "ran").exists()
    shown = datafree.load_run(made / "run", trust_code=True)
    assert shown.student is not None
    assert (made / "ran").exists()
    (made / "ran").unlink()


@pytest.mark.integration
def test_a_trusted_run_works_from_the_command_line(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    call("evaluate", "run", "--data", "test.npz", "--trust-code")
    assert (made / "run" / "evaluation.json").is_file()


@pytest.mark.integration
def test_a_run_that_kept_its_network_needs_no_code(made: Path) -> None:
    datafree.quantize(f"{made / 'net.py'}:build", output=made / "kept", **QUICK)
    (made / "ran").unlink(missing_ok=True)
    assert datafree.load_run(made / "kept").student is not None
    changed = yaml.safe_load((made / "kept" / "config.yaml").read_text())
    changed["metric"] = f"{made / 'net.py'}:measure"
    (made / "kept" / "config.yaml").write_text(yaml.safe_dump(changed))
    record = json.loads((made / "kept" / "metrics.json").read_text())
    record["hashes"]["config.yaml"] = sha256(made / "kept" / "config.yaml")
    (made / "kept" / "metrics.json").write_text(json.dumps(record))
    with pytest.raises(UntrustedCodeError, match=r"measure \(metric\)"):
        datafree.load_run(made / "kept").evaluate(made / "test.npz")
    datafree.load_run(made / "kept").evaluate(made / "test.npz", metric=one)
    assert not (made / "ran").exists()


def test_whoever_sits_at_a_terminal_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from datafree.cli import console

    config = RunConfig(model="net.py:build")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(console, "err", console.Console(stderr=True, force_terminal=True))
    asked: list[str] = []

    def answer(yes: bool) -> None:
        def confirm(text: str, err: bool) -> bool:
            asked.append(text)
            return yes and err

        monkeypatch.setattr("click.confirm", confirm)

    answer(True)
    console.check_code(config, Path("config.yaml"), trust_code=False)
    answer(False)
    with pytest.raises(UntrustedCodeError):
        console.check_code(config, Path("config.yaml"), trust_code=False)
    assert len(asked) == 2
    console.check_code(config, Path("config.yaml"), trust_code=True)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model": "net.pt2"}, {}),
        ({"model": "digits_resnet8", "method": "dsg,psaq"}, {}),
        ({"model": "timm:resnet18"}, {}),
        ({"model": "<Net in memory>"}, {}),
        ({"model": "os:abort"}, {"model": "os:abort"}),
        ({"model": "./net.py:build"}, {"model": "./net.py:build"}),
        ({"model": "timm:x", "method": "dsg,a.py:Own"}, {"method": "a.py:Own"}),
        ({"model": "torchvision:x"}, {}),
        ({"model": "pytorchcv:x"}, {}),
        ({"model": "x.pt2", "method": "timm:Own"}, {"method": "timm:Own"}),
        ({"model": "x.pt2", "calibrator": "p.q:C"}, {"calibrator": "p.q:C"}),
        ({"model": "x.pt2", "reconstruction": "p.q:C"}, {"reconstruction": "p.q:C"}),
        ({"model": "x.pt2", "decode": "p.py:boxes"}, {"decode": "p.py:boxes"}),
        (
            {"model": "x.pt2", "student": "s.py:net", "training": "distill"},
            {"student": "s.py:net"},
        ),
    ],
)  # fmt: skip
def test_code_is_found_wherever_it_is_named(fields: dict[str, Any], code: dict[str, str]) -> None:
    config = RunConfig(**fields)
    assert code_in(config) == code
    assert code_in(config, fields) == {}
    check_trusted(config, Path("config.yaml"), trust_code=True)
    if code:
        with pytest.raises(UntrustedCodeError, match=r"^config.yaml would run the code "):
            check_trusted(config, Path("config.yaml"), trust_code=False)


def test_names_of_libraries_are_those_that_networks_can_come_from() -> None:
    assert set(LIBRARIES) == set(HUBS)


def test_every_field_of_free_text_is_code_or_known_not_to_be() -> None:
    free = {
        name
        for name in RunConfig.model_fields
        if (told := describe(RunConfig, name)).kind == "str" and not told.choices
    }
    assert free - {"model", "student", "metric", "decode"} == {
        "bits", "budget", "device", "target",
    }  # fmt: skip
