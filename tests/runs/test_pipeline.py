"""The whole way from network to integer model, in a folder and in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import datafree.runs.pipeline as pipeline
from datafree.api import synthesize
from datafree.config import RunConfig, load_config, merge
from datafree.errors import ConfigError, DatafreeError, ModelError, OutputExistsError
from datafree.evaluate import outputs_of
from datafree.files import sha256
from datafree.images import SyntheticSet, device_batches
from datafree.models import Teacher, from_module
from datafree.runs import judging, measuring, post_training, synthesizing
from datafree.runs.pipeline import Result, run
from datafree.runs.plan import resolve_device
from datafree.synthesis.zeroq import ZeroQ
from datafree.verdict.held_out import held_out_images
from networks import SPEC, build, images, quantizer_of, randomized

pytestmark = pytest.mark.integration

FILES = [
    "config.yaml",
    "grid.png",
    "images.safetensors",
    "metrics.json",
    "report.html",
    "student.onnx",
    "student.pt2",
    "student.safetensors",
]
FEW = {"iterations": 2}
BARE = [name for name in FILES if name not in ("student.onnx", "student.pt2")]


def config(**changes: Any) -> RunConfig:
    """The smallest run worth looking at: 4 images, 3 iterations, no export."""
    base = RunConfig(
        model="digits_resnet8",
        method="zeroq",
        method_options={"iterations": 3},
        images=4,
        calibrator="minmax",
        holdout=2,
        export=False,
        latency=False,
        device="cpu",
    )
    return RunConfig.model_validate(merge(base.model_dump(), changes))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A complete run with export, made once."""
    return run(config(export=True), folder=tmp_path_factory.mktemp("runs") / "full")


@pytest.mark.e2e
def test_a_run_writes_everything(full: Result) -> None:
    assert full.folder is not None
    assert names(full.folder) == FILES
    assert load_config(full.folder / "config.yaml") == config(export=True)
    stored = SyntheticSet.load(full.folder / "images.safetensors")
    assert stored.digest() == full.images.digest()
    assert len(stored) == 4


@pytest.mark.e2e
def test_metrics_say_what_was_measured_on_what(full: Result) -> None:
    assert full.folder is not None
    written = record(full.folder)
    results = written["results"]
    assert sorted(written) == ["environment", "hashes", "results", "runtime", "seconds"]
    assert results | {"runtime": written["runtime"]} == json.loads(json.dumps(full.metrics))
    assert results["images"] == full.images.digest()
    assert len(results["teacher"]) == 64
    assert results["held_out"]["images"] == 2
    assert set(results["sqnr_db"]) >= {"stem.0", "classifier"}
    assert results["onnx"]["parity"]["images"] == 4
    assert results["onnx"]["weight_bytes"] < 0.3 * results["onnx"]["float_weight_bytes"]
    assert results["pt2"]["parity"]["difference"] == 0
    assert written["hashes"] == {
        name: sha256(full.folder / name)
        for name in FILES
        if name not in ("metrics.json", "report.html")
    }
    stages = [
        "capture", "synthesis", "holdout", "calibration", "evaluation", "layers", "export",
        "runtime", "report",
    ]  # fmt: skip
    assert list(written["seconds"]) == stages
    assert min(written["seconds"].values()) >= 0


@pytest.mark.e2e
def test_same_seed_same_results(full: Result, tmp_path: Path) -> None:
    again = run(config(export=True), folder=tmp_path / "again")
    assert full.folder is not None
    assert again.images.digest() == full.images.digest()
    first, second = record(full.folder), record(tmp_path / "again")
    assert second["results"] == first["results"]
    different = {n for n in first["hashes"] if first["hashes"][n] != second["hashes"][n]}
    assert different <= {"student.pt2", "images.safetensors"}  # order of archive and header
    assert list(second["seconds"]) == list(first["seconds"])


def test_another_seed_gives_other_images_and_results() -> None:
    first, second = run(config()), run(config(seed=1))
    assert first.images.digest() != second.images.digest()
    assert first.metrics["teacher"] == second.metrics["teacher"]
    assert first.metrics["held_out"] != second.metrics["held_out"]


def test_held_out_images_are_not_the_calibration_images(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SyntheticSet] = []

    def spy(*args: Any, **kwargs: Any) -> SyntheticSet:
        made.append(held_out_images(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(judging, "held_out_images", spy)
    result = run(config(images=2, method="noise", holdout=3))
    assert len(made) == 1 and len(made[0]) == 3
    rows = torch.cat((made[0].images, result.images.images)).flatten(1)
    assert float(torch.pdist(rows).min()) > 0


def test_without_holdout_and_data_nothing_is_compared() -> None:
    metrics = run(config(holdout=0)).metrics
    assert set(metrics) == {"batches", "teacher", "input", "images", "task", "sqnr_db", "isolation"}


def test_without_export_there_is_no_onnx(tmp_path: Path) -> None:
    run(config(), folder=tmp_path / "run")
    assert names(tmp_path / "run") == BARE


def test_given_images_are_used_and_kept(tmp_path: Path) -> None:
    teacher = from_module(build("Tiny"), input_shape=SPEC.shape)
    given = SyntheticSet(images(4), teacher.spec)
    result = run(config(), teacher=teacher, images=given, folder=tmp_path / "run")
    assert result.images is given
    assert result.metrics["images"] == given.digest()
    assert SyntheticSet.load(tmp_path / "run" / "images.safetensors").digest() == given.digest()


def test_an_existing_run_is_refused(tmp_path: Path) -> None:
    run(config(), folder=tmp_path)
    before = (tmp_path / "metrics.json").read_bytes()
    with pytest.raises(OutputExistsError, match="--force"):
        run(config(), folder=tmp_path)
    assert (tmp_path / "metrics.json").read_bytes() == before


def test_force_replaces_a_run_and_spares_what_is_not_of_it(tmp_path: Path) -> None:
    run(config(), folder=tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "student.onnx").write_text("old", encoding="utf-8")
    result = run(config(seed=1), folder=tmp_path, force=True)
    assert load_config(tmp_path / "config.yaml").seed == 1
    assert record(tmp_path)["results"]["images"] == result.images.digest()
    assert names(tmp_path) == sorted([*BARE, "notes.txt"])


@pytest.mark.parametrize("found", ["notes.txt", "config.yaml"])
def test_force_never_replaces_what_is_not_a_run(tmp_path: Path, found: str) -> None:
    (tmp_path / found).write_text("title: my thesis\n", encoding="utf-8")
    with pytest.raises(OutputExistsError):
        run(config(), folder=tmp_path)
    with pytest.raises(OutputExistsError, match="not a run"):
        run(config(), folder=tmp_path, force=True)
    assert names(tmp_path) == [found]
    assert (tmp_path / found).read_text(encoding="utf-8") == "title: my thesis\n"


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputExistsError):
        run(config(), folder=tmp_path / "file", force=True)


@pytest.mark.parametrize("stage", ["evaluated", "export_student"])
def test_an_interrupted_run_goes_on_without_synthesising_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    expected = run(config(holdout=0))

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, stage, interrupt)
        run(config(holdout=0), folder=tmp_path)
    assert "metrics.json" not in names(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ZeroQ, "make_batch", interrupt)
        result = run(config(holdout=0), folder=tmp_path)
    assert result.metrics == expected.metrics
    assert names(tmp_path) == BARE


def test_an_unfinished_run_of_other_options_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "evaluated", interrupt)
        run(config(), folder=tmp_path)
    with pytest.raises(OutputExistsError):
        run(config(seed=1), folder=tmp_path)
    result = run(config(seed=1), folder=tmp_path, force=True)
    assert result.images.digest() == run(config(seed=1)).images.digest()


MISTAKES: dict[str, dict[str, Any]] = {
    "method": {"method": "zerok"},
    "option": {"method": "zeroq", "method_options": {"steps": 3}},
    "calibrator": {"calibrator": "minimax"},
    "device": {"device": "abacus"},
    "data": {"data": Path("nowhere.npz")},
    "model": {"model": "digits_resnet9"},
    "shape": {"input_shape": (3, 8, 8)},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_work_and_leave_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("synthesised before checking")

    monkeypatch.setattr(ZeroQ, "make_batch", never)
    with pytest.raises(DatafreeError):
        run(config(**MISTAKES[mistake]), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mistake_with_force_leaves_the_earlier_run(tmp_path: Path) -> None:
    run(config(), folder=tmp_path)
    with pytest.raises(DatafreeError):
        run(config(calibrator="minimax"), folder=tmp_path, force=True)
    assert names(tmp_path) == BARE
    assert load_config(tmp_path / "config.yaml") == config()


def test_methods_that_need_batch_norm_name_one_that_does_not() -> None:
    teacher = from_module(build("NoNorm"), input_shape=SPEC.shape)
    with pytest.raises(ModelError, match="noise"):
        run(config(), teacher=teacher)
    assert len(run(config(method="noise"), teacher=teacher).images) == 4


@pytest.mark.parametrize("name", ["abacus", "mps", "meta", "cuda:99", "cuda:x"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown device|no device"):
        resolve_device(name)


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_replaced_relu6_counts_as_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student is compared with the network that came, not with the one made of it."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    randomized(model, images(8))
    torch.nn.init.constant_(model.get_submodule("1").get_parameter("weight"), 9.0)
    compared: list[fx.GraphModule] = []

    def spy(teacher: fx.GraphModule, student: fx.GraphModule, batches: Any) -> Any:
        compared.append(teacher)
        return outputs_of(teacher, student, batches)

    monkeypatch.setattr(judging, "outputs_of", spy)
    teacher = from_module(model, input_shape=SPEC.shape, mean=SPEC.mean, std=SPEC.std)
    result = run(config(equalize=True, replace_relu6=True), teacher=teacher)
    batch = images(4)
    torch.testing.assert_close(compared[0](batch), model(batch))
    assert not any(isinstance(module, nn.ReLU6) for module in result.student.modules())


def padded() -> nn.Sequential:
    """Two padded convolutions, the first with offsets far above zero."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    randomized(model, images(8))
    torch.nn.init.constant_(model.get_submodule("1").get_parameter("bias"), 6.0)
    return model


def test_absorbed_biases_count_as_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[fx.GraphModule] = []

    def spy(teacher: fx.GraphModule, student: fx.GraphModule, batches: Any) -> Any:
        compared.append(teacher)
        return outputs_of(teacher, student, batches)

    monkeypatch.setattr(judging, "outputs_of", spy)
    model = padded()
    run(config(absorb_biases=True), teacher=in_memory(model))
    batch = images(4)
    torch.testing.assert_close(compared[0](batch), model(batch))


def in_memory(model: nn.Module) -> Teacher:
    return from_module(model, input_shape=SPEC.shape, mean=SPEC.mean, std=SPEC.std)


def test_an_unfinished_run_of_another_network_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two networks in memory look the same in the configuration."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    chosen = config(average_bits=4)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(post_training, "calibrate", stop)
        with pytest.raises(KeyboardInterrupt):
            run(chosen, teacher=in_memory(build("Tiny", seed=1)), folder=folder)
    assert (folder / "allocation.json").exists()
    other = in_memory(build("Tiny", seed=2))
    fresh = run(chosen, teacher=other)
    resumed = run(chosen, teacher=other, folder=folder)
    assert resumed.images.digest() == fresh.images.digest()
    assert resumed.metrics["allocation"] == fresh.metrics["allocation"]


def test_outliers_are_split_by_the_steps_of_the_bits_allocated() -> None:
    """Codes of the halves add up to the code of the weight, at two bits as at any."""
    chosen = config(average_bits=2, candidate_bits=(2,), split_outliers=0.5)
    model = padded()
    result = run(chosen, teacher=in_memory(model))
    uniform = run(
        config(bits="W2A8", split_outliers=0.5, weight_range="mse"), teacher=in_memory(model)
    )
    state = uniform.student.state_dict()
    for name, value in result.student.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_a_result_can_be_run_again_with_the_bits_it_found() -> None:
    first = run(config(average_bits=4))
    again = run(first.config)
    assert again.config.layer_bits == first.config.layer_bits


def test_a_layer_that_is_not_there_is_told_before_images_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synthesizing, "synthesize_images", None)
    with pytest.raises(ConfigError, match="layer_bits"):
        run(config(layer_bits={"no_such": 4}))


def test_images_of_a_run_are_made_for_its_student() -> None:
    options = {"iterations": 1, "matching_iterations": 1, "student_iterations": 1}
    chosen = config(method="sadag", method_options=options, bits="W3A5", holdout=0)
    made = run(chosen).images
    assert made.metadata["scheme"]["bits"] == "W3A5"
    alone = synthesize(
        "digits_resnet8", method="sadag", images=2, method_options=options, excite=False
    )
    assert alone.metadata["scheme"] is None


@pytest.mark.gpu
def test_a_run_on_a_gpu() -> None:
    result = run(config(device="cuda", reconstruction="qdrop", reconstruction_options=FEW))
    assert {p.device.type for p in result.student.parameters()} == {"cuda"}
    assert {b.device.type for b in result.student.buffers()} == {"cuda"}


def test_runs_say_how_long_they_take() -> None:
    lines: list[str] = []
    result = run(
        config(images=3, method="zeroq", method_options={"iterations": 50}), tell=lines.append
    )
    (line,) = lines
    assert line.startswith("expected to take")
    assert result.seconds["forecast"] > 0


def test_a_forecast_changes_nothing() -> None:
    chosen = config(images=3, method="zeroq", method_options={"iterations": 5})
    told, untold = run(chosen, tell=lambda _: None), run(chosen)
    assert told.metrics == untold.metrics
    assert torch.equal(told.images.images, untold.images.images)


def test_the_scheme_reaches_the_student() -> None:
    coarse = run(config(bits="W2A2"))
    fine = run(config())
    lost = [min(result.metrics["sqnr_db"].values()) for result in (coarse, fine)]
    assert lost[0] < lost[1]


@pytest.mark.parametrize("reconstruction", [None, "adaround", "brecq", "qdrop", "genie_m"])
def test_whose_activations_set_the_ranges(reconstruction: str | None) -> None:
    """Of the float network where rounding is learned, of the quantized one where it is not."""
    network, x = build("Tiny"), images(8, 3, SPEC.shape)
    chosen = config(
        bits="W2A4",
        bias_correction="none",
        reconstruction=reconstruction,
        reconstruction_options=STILL[reconstruction] if reconstruction else {},
    )
    given = SyntheticSet(x, SPEC)
    student = run(chosen, teacher=in_memory(network), images=given).student
    with torch.no_grad():
        exact = torch.relu(network.get_submodule("bn1")(network.get_submodule("conv1")(x)))
    scale = quantizer_of(student, "relu1_quantizer").scale
    assert (scale.item() == pytest.approx(exact.max().item() / 15)) == bool(reconstruction)


STILL: dict[str, dict[str, Any]] = {
    "adaround": FEW,
    "brecq": {**FEW, "activation_iterations": 1, "activation_lr": 1e-12},
    "qdrop": {**FEW, "activation_lr": 0.0},
    "genie_m": {**FEW, "activation_lr": 0.0},
}
"""Reconstructions that leave activation steps as calibrated."""


def test_images_per_batch_are_those_that_pass_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """In calibration and in every comparison."""
    seen: list[int] = []

    def spy(*arguments: Any) -> Any:
        for batch in device_batches(*arguments):
            seen.append(len(batch))
            yield batch

    monkeypatch.setattr(measuring, "device_batches", spy)
    monkeypatch.setattr(post_training, "device_batches", spy)
    monkeypatch.setattr(judging, "device_batches", spy)
    few = {"method": "noise", "images": 4, "holdout": 2}
    run(config(**few))
    assert seen == [4, 4, 2]
    seen.clear()
    run(config(**few, images_per_batch=3))
    assert seen == [3, 1, 3, 1, 2]
