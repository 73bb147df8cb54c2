"""The functions users call, and what `import datafree` costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import datafree
from datafree.api import export_student
from datafree.config import InputSpec, Method
from datafree.errors import ConfigError, DataError, DatafreeError, ModelError, OutputExistsError
from datafree.testing.watching import fingerprint
from networks import SPEC, build, images

QUICK: dict[str, Any] = {
    "input_shape": SPEC.shape,
    "mean": SPEC.mean,
    "std": SPEC.std,
    "method": "zeroq",
    "method_options": {"iterations": 3},
    "images": 4,
    "calibrator": "minmax",
    "holdout": 2,
    "device": "cpu",
}


def _with_images(chosen: object) -> dict[str, Any]:
    return QUICK | {"images": chosen}


HEAVY = ("torch", "torchvision", "timm", "pytorchcv", "onnx", "onnxruntime", "matplotlib", "PIL")


def test_public_names() -> None:
    assert datafree.__all__ == [
        "DatafreeError",
        "InputSpec",
        "Result",
        "Run",
        "RunConfig",
        "Scheme",
        "SyntheticSet",
        "benchmark",
        "capture",
        "distill",
        "export_student",
        "load_run",
        "quantize",
        "run",
        "sweep",
        "synthesize",
    ]
    assert set(datafree.__all__) <= set(dir(datafree))
    assert datafree.InputSpec is InputSpec


@pytest.mark.parametrize("name", datafree.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(datafree, name).__doc__


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        _ = datafree.quantise


@pytest.mark.parametrize(
    ("module", "heavy"), [("datafree", HEAVY), ("datafree.api", HEAVY[1:6])], ids=["root", "api"]
)
def test_import_is_light(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*(m for m in {heavy!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_quantize_gives_a_student_and_leaves_the_module_alone() -> None:
    model = build("Tiny").train()
    before = fingerprint(model)
    result = datafree.quantize(model, bits="W4A4", **QUICK)
    assert fingerprint(model) == before
    assert model.training
    assert result.student(images(3)).shape == (3, SPEC.classes)
    assert result.spec == SPEC
    assert result.config.scheme.label == "W4A4"
    assert result.folder is None
    with torch.no_grad():
        exact, coarse = model.eval()(images(3)), result.student(images(3))
    assert not torch.equal(exact, coarse)


def test_quantize_twice_gives_the_same() -> None:
    first, second = (datafree.quantize(build("Tiny"), **QUICK) for _ in range(2))
    assert first.metrics == second.metrics
    assert torch.equal(first.student(images(2)), second.student(images(2)))
    third = datafree.quantize(build("Tiny"), **QUICK, seed=1)
    assert third.metrics["images"] != first.metrics["images"]


def test_quantize_takes_images_of_the_user() -> None:
    own = images(6)
    result = datafree.quantize(build("Tiny"), **_with_images(own))
    assert torch.equal(result.images.images, own)
    assert result.images.metadata["method"] == "given"
    assert result.config.images == 6
    again = datafree.quantize(build("Tiny"), **_with_images(result.images))
    assert again.metrics == result.metrics


def test_images_of_the_user_must_fit() -> None:
    with pytest.raises(DataError, match="do not fit"):
        datafree.quantize(build("Tiny"), **_with_images(torch.zeros(2, 1, 8, 8)))
    with pytest.raises(DataError, match="NaN"):
        datafree.quantize(build("Tiny"), **_with_images(images(2) / 0))


def test_quantize_by_name() -> None:
    given = {key: QUICK[key] for key in ("images", "holdout", "device", "calibrator")}
    result = datafree.quantize("digits_resnet8", method="noise", **given)
    assert result.spec.classes == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": None}, "input_shape"),
        ({"input_shape": (1, 8, 8), "mean": None, "std": None}, "does not take images of 1, 8, 8"),
        ({"mean": (0.5, 0.5)}, "mean has 2 values for 3 channels"),
        ({"std": (0.2, 0.0, 0.2)}, "std must be positive"),
        ({"bits": "W9A8"}, "weights"),
        ({"bits": "W8A1"}, "2 to 8"),
        ({"polizy": "all"}, "polizy is not known .did you mean policy"),
        ({"policy": "some"}, "policy"),
        ({"images": 0}, "images"),
        ({"seed": -1}, "seed"),
        ({"method": "zerok"}, "zeroq"),
        ({"calibrator": "minimax"}, "minmax"),
        ({"method_options": {"steps": 3}}, "steps is not known"),
        ({"calibrator_options": {"steps": 3}}, "steps is not known"),
        ({"device": "abacus"}, "unknown device"),
        ({"weights_file": "weights.safetensors"}, "weights_file"),
        ({"data": "nowhere.npz"}, "nowhere.npz"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatafreeError, match=message) as caught:
        datafree.quantize(build("Tiny"), **(QUICK | changes))
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = build("Tiny")
    with torch.no_grad():
        model.get_parameter("conv1.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"conv1\.weight holds 1 NaN"):
        datafree.quantize(model, **QUICK)


def test_synthesize() -> None:
    options: dict[str, Any] = {"input_shape": SPEC.shape, "mean": SPEC.mean, "std": SPEC.std}
    model = build("Tiny")
    before = fingerprint(model)
    made: dict[str, Any] = {"method": "zeroq", "method_options": {"iterations": 2}, "images": 3}
    first = datafree.synthesize(model, **made, **options)
    assert fingerprint(model) == before
    assert len(first) == 3
    assert first.spec == SPEC
    again = datafree.synthesize(model, **made, **options)
    assert first.digest() == again.digest()
    other = datafree.synthesize(model, **made, seed=1, **options)
    assert first.digest() != other.digest()
    with pytest.raises(ConfigError, match="steps"):
        datafree.synthesize(model, method="zeroq", method_options={"steps": 3}, **options)


@pytest.mark.e2e
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_export(tmp_path: Path, suffix: str) -> None:
    result = datafree.quantize(build("Tiny"), **QUICK)
    path = tmp_path / f"student.{suffix}"
    report = export_student(result.student, path, spec=result.spec, images=result.images)
    assert report.path == path
    assert report.parity.images == 4
    with pytest.raises(OutputExistsError):
        export_student(result.student, path, spec=result.spec)
    assert export_student(result.student, path, spec=result.spec, force=True).parity.images == 32


def test_export_refuses_unknown_suffixes(tmp_path: Path) -> None:
    result = datafree.quantize(build("Tiny"), **QUICK)
    with pytest.raises(ConfigError, match="onnx"):
        export_student(result.student, tmp_path / "student.gguf", spec=result.spec)


def test_a_recipe_and_what_is_changed_of_it() -> None:
    options = {"iterations": 1}
    result = datafree.quantize(
        build("Tiny"), input_shape=SPEC.shape, recipe="balanced", images=2, holdout=0,
        method_options=options, reconstruction_options=options, bits="W3A8",
    )  # fmt: skip
    config = result.config
    assert (config.bits, config.scheme.weight_range) == ("W3A8", "mse")
    assert config.synthesis == Method(name="dsg", options=options)
    assert config.calibration == Method(name="mse", options={"power": 2.4})
    assert config.rounding == Method(name="adaround", options=options)
    assert config.images == len(result.images) == 2


def test_reconstruction_takes_weight_ranges_of_least_error() -> None:
    options: dict[str, Any] = {"method": "noise", "images": 4, "holdout": 0, "bits": "W3A8"}
    result = datafree.quantize(
        "digits_resnet8",
        reconstruction="adaround",
        reconstruction_options={"iterations": 2},
        **options,
    )
    assert result.config.scheme.weight_range == "mse"
    assert len(result.metrics["reconstruction"]) == 10
    plain = datafree.quantize("digits_resnet8", **options)
    assert plain.config.scheme.weight_range == "minmax"
    assert "reconstruction" not in plain.metrics
    with pytest.raises(ConfigError, match="without a reconstruction"):
        datafree.quantize("digits_resnet8", reconstruction_options={"iterations": 2}, **options)


def test_progress_true_says_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    datafree.quantize(build("Tiny"), bits="W8A8", progress=True, **QUICK)
    said = capsys.readouterr()
    assert "expected to take" in said.err
    assert said.out == ""


def test_a_progress_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match="progress is True"):
        datafree.quantize(build("Tiny"), bits="W8A8", progress="yes", **QUICK)  # pyright: ignore


def test_a_network_in_memory_comes_back_from_its_folder(tmp_path: Path) -> None:
    quick: dict[str, Any] = QUICK | {"latency": False, "export": False}
    result = datafree.quantize(build("Tiny"), bits="W8A8", output=tmp_path / "run", **quick)
    (tmp_path / "run").rename(tmp_path / "moved")
    run = datafree.load_run(tmp_path / "moved")
    x = images(3)
    with torch.no_grad():
        assert torch.equal(run.student(x), result.student(x))
    assert run.result.spec == result.spec
