"""Every kind of measurement on the built-in network, with steps that take seconds."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.kinds import Bench, kind_and_config
from benchmarks.kinds.base import WITHOUT_PHOTOS
from benchmarks.kinds.bounds import best_of
from benchmarks.kinds.cost import one_thread
from benchmarks.kinds.default_run import source_of, timed
from benchmarks.kinds.dsg_margins import inside, loss
from benchmarks.kinds.image_facts import unseen
from benchmarks.kinds.in_runtime import compared
from benchmarks.kinds.memory import watched
from benchmarks.kinds.speed import summary
from benchmarks.mct_alone import built, quantized
from benchmarks.measures import harder_images
from benchmarks.moments import middle, noting
from benchmarks.networks import load
from benchmarks.place import Place
from benchmarks.runner import LeftOutError
from benchmarks.tools import prepared

from datafree.config import InputSpec, RunConfig, load_config, save_config
from datafree.errors import DatafreeError, UnknownNameError
from datafree.progress import silent
from datafree.tensors import random_numbers

TINY_TRAINING = {
    "warmup": 3, "iterations": 3, "batch_size": 8, "width": 8, "checks": 2, "holdout": 16,
    "calibration_images": 16,
}  # fmt: skip


@pytest.fixture
def bench(root: Path) -> Bench:
    return Bench(Place(root, root / "shared"), silent)


def measured(bench: Bench, **fields: Any) -> dict[str, Any]:
    base = {
        "kind": "run", "model": "digits_resnet8", "bits": "W8A8", "method": "noise", "images": 8,
        "seed": 0,
    }  # fmt: skip
    kind, config = kind_and_config(base | fields, "a cell")
    return kind.measure(config, bench)


@pytest.mark.integration
def test_a_run_tells_what_it_is_asked(bench: Bench) -> None:
    asked = ["image_digest", "weights", "input_ranges", "divergence_on_images"]
    found = measured(bench, measures=asked)
    assert found["top1"] > 95
    assert found["teacher"] == pytest.approx(99.72, abs=0.01)
    assert found["test_images"] == 360
    assert found["bytes"] == 77_072
    assert found["layer_bits"] == ""
    assert found["predicted"] < 0.01
    assert {"capture", "calibration"} <= set(found["stages"])
    assert found["ranges"]["flatten_quantizer"] > 0
    assert 0 <= found["kl"] < 0.01
    again = measured(bench, measures=["image_digest"])
    assert again["digest"] == found["digest"]
    assert len(list(bench.place.made.glob("*.safetensors"))) == 1


@pytest.mark.integration
def test_bits_are_told_where_they_are_mixed(bench: Bench) -> None:
    mixed = {"bits": "W4A8", "average_bits": 4, "weight_range": "mse"}
    found = measured(bench, **mixed, measures=["weights"])
    assert len(found["layer_bits"]) == 10
    assert found["bytes"] <= 77_072 / 2


@pytest.mark.integration
def test_a_quantizer_can_be_switched_off(bench: Bench) -> None:
    assert measured(bench, off="flatten_quantizer")["top1"] > 95
    with pytest.raises(UnknownNameError, match="did you mean flatten_quantizer"):
        measured(bench, off="flatten")
    with pytest.raises(UnknownNameError, match="did you mean harder"):
        measured(bench, measures=["hard"])


@pytest.mark.integration
def test_learning_tells_how_it_went_and_leaves_nothing_behind(bench: Bench) -> None:
    rounding = {"reconstruction": "adaround", "reconstruction_options": {"iterations": 2}}
    assert 0 <= measured(bench, **rounding)["undecided"] <= 100
    training = {"training": "dfqf", "training_options": TINY_TRAINING}
    found = measured(bench, **training, measures=["divergence", "harder"])
    assert {"last", "agreement", "best_step", "warmup_seconds", "tuning_seconds"} <= set(found)
    assert {"kl", "shifted", "noisy"} <= set(found)
    distilling = {k: v for k, v in TINY_TRAINING.items() if k != "iterations"}
    student = {"student": "plain_digits", "float_student": True}
    found = measured(bench, training="distill", training_options=distilling, **student)
    assert "tuning_seconds" not in found
    assert not list(bench.place.made.glob("*.unfinished"))


def test_a_run_whose_pictures_are_given_is_read_again(tmp_path: Path) -> None:
    """What was interrupted could not go on where a share of pictures was left without them."""
    fields = {"photos": "pictures", "photo_share": 1.0, "method": "noise"}
    _, config = kind_and_config({"model": "digits_resnet8", "kind": "run", **fields}, "a cell")
    given = config.model_copy(update=WITHOUT_PHOTOS)
    save_config(given, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == given


@pytest.mark.integration
def test_a_recipe_makes_its_own_images(bench: Bench) -> None:
    found = measured(bench, kind="by_recipe", recipe="fast", bits="W4A8", images=7)
    assert found["top1"] > 95
    assert found["test_images"] == 360
    assert {"capture", "synthesis", "calibration"} <= set(found["stages"])
    assert "evaluation" not in found["stages"]
    assert found["minutes"] == pytest.approx(sum(found["stages"].values()) / 60, rel=0.05)
    assert not list(bench.place.made.glob("*")), "no images are taken from an earlier cell"
    with pytest.raises(UnknownNameError, match="did you mean fast"):
        measured(bench, kind="by_recipe", recipe="fats")


@pytest.mark.integration
def test_bounds_are_the_best_of_all(bench: Bench) -> None:
    fields: dict[str, Any] = {
        "kind": "bounds", "bits": "W2A2", "weight_granularity": "tensor", "calibrators": ["minmax"],
    }  # fmt: skip
    alone = measured(bench, **fields)
    corrected = measured(bench, **fields, corrected=True)
    assert alone["whose_top1"].startswith("minmax, ")
    assert corrected["top1"] > alone["top1"]
    assert corrected["whose_top1"].split(", ")[-1] in ("empirical", "analytic")


def test_the_best_is_the_least_divergence_and_the_most_of_all_else() -> None:
    told = {"teacher": 99.0, "test_images": 4}
    found = best_of(
        {"a": {**told, "top1": 50.0, "kl": 0.2}, "b": {**told, "top1": 60.0, "kl": 0.3}}
    )
    assert found == {
        **told, "top1": 60.0, "whose_top1": "b", "kl": 0.2, "whose_kl": "a",
    }  # fmt: skip


@pytest.mark.integration
def test_the_other_kinds(bench: Bench) -> None:
    learning = {"reconstruction": "genie_m", "reconstruction_options": {"iterations": 2}}
    assert measured(bench, kind="teacher")["top1"] == pytest.approx(99.72, abs=0.01)
    for observe in ("quantized", "float"):
        assert measured(bench, kind="ranges", observe=observe, **learning)["top1"] > 10
    parity = measured(bench, kind="onnx_parity")
    assert parity["identical"] > 99
    assert parity["share"] == pytest.approx(0.256, abs=0.001)
    margins = measured(
        bench, kind="dsg_margins", method="dsg", method_options={"iterations": 2},
        granularity="batch", epsilon=0.9,
    )  # fmt: skip
    assert margins["inside_noise"] > 50
    assert len(margins["gaps_noise_over_real"]) == 9
    for real in (False, True):
        facts = measured(bench, kind="image_facts", real=real, references=16)
        assert facts["confidence"] <= 1


@pytest.mark.integration
def test_sadags_variants_start_from_one_warm_up(bench: Bench) -> None:
    options = {
        "iterations": 2, "batch_size": 8, "matching_iterations": 2, "student_iterations": 2,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "kind": "sadag", "bits": "W4A4", "method": "sadag", "method_options": options,
        "reconstruction": "adaround", "reconstruction_options": {"iterations": 2}, "image_seed": 0,
        "compared": 64,
    }  # fmt: skip
    genie = measured(bench, **fields, variant=None)
    assert genie["moved"] == 0
    assert -1 <= genie["cosine"] <= 1
    (start,) = bench.place.made.glob("*.unfinished")
    written = {path.name: path.stat().st_mtime_ns for path in start.iterdir()}
    moved = measured(bench, **fields, variant={"rho": 0.5, "matching_generator_lr": 0.1})
    assert moved["moved"] > 0
    assert moved["cosine"] != genie["cosine"]
    assert {path.name: path.stat().st_mtime_ns for path in start.iterdir()} == written


@pytest.mark.integration
def test_training_lenet5_writes_its_weights(root: Path) -> None:
    bench = Bench(Place(root, root / "shared"), silent)
    (root / "shared" / "data").mkdir(parents=True)
    images, labels = np.zeros((20, 28, 28, 1), np.uint8), np.arange(20) % 10
    for part in ("train", "test"):
        np.savez(root / "shared" / "data" / f"mnist_{part}.npz", images=images, labels=labels)
    weights = bench.place.weights("lenet5_mnist")
    before = weights.read_bytes()
    found = measured(bench, kind="train_lenet5", model="lenet5_mnist", epochs=1)
    assert found == {"top1": 10.0, "test_images": 20}
    assert weights.read_bytes() != before


def test_harder_images_are_the_same_ones_moved_or_noisy() -> None:
    spec = InputSpec(shape=(1, 4, 4), mean=(0.5,), std=(0.25,), classes=2)
    pixels = torch.rand(2, 1, 4, 4, generator=random_numbers(0, "test"))
    found = {
        name: 0.25 * made + 0.5 for name, made in harder_images((pixels - 0.5) / 0.25, spec).items()
    }
    assert found["shifted"].shape == found["noisy"].shape == (18, 1, 4, 4)
    torch.testing.assert_close(found["shifted"][8:10], pixels)  # the fifth of nine places
    torch.testing.assert_close(found["shifted"][:2, :, 1:, 1:], pixels[:, :, :-1, :-1])
    assert float(found["shifted"][:2, :, 0].abs().max()) == pytest.approx(0, abs=1e-6)
    assert float(found["noisy"].min()) >= -1e-6
    assert float(found["noisy"].max()) <= 1 + 1e-6


def test_statistics_inside_the_margins_by_hand() -> None:
    """Gaps 1, 2 | 3 and 4 | 0, 1 against margins 2 and 0: three of six are inside."""
    gaps = [
        (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])),
        (torch.tensor([[1.0]]), torch.tensor([[0.0]])),
    ]
    delta, gamma = torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.0])
    assert inside(gaps, delta, gamma) == pytest.approx(100 * 3 / 6)
    assert loss(gaps, delta, gamma) == pytest.approx(1 + 4 + 1)  # (3-2)^2 + (4-2)^2 + (1-0)^2


def test_equal_moments_leave_nothing_unseen() -> None:
    moments = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert unseen(moments, moments) == pytest.approx(1.0)
    assert unseen(0.5 * moments, moments) > 1.0


@pytest.mark.integration
def test_images_in_the_quantizer_of_another_tool(bench: Bench) -> None:
    fields: dict[str, Any] = {"kind": "exported_images", "images": 16}
    noise = measured(bench, **fields)
    excited = measured(bench, **fields, excite=True)
    assert excited["top1"] > 95
    assert excited["logits"] > 1.2 * noise["logits"]
    assert excited["image_digest"] == measured(bench, **fields, excite=True)["image_digest"]
    assert measured(bench, **fields, full_range=True)["logits"] < excited["logits"]


def test_files_are_compared_with_what_is_expected_of_them() -> None:
    logits = torch.tensor([[4.0, 0.0], [1.0, 3.0], [2.0, 1.0]])
    other = torch.tensor([[4.0, 0.0], [1.0, 3.0], [1.5, 2.0]])
    batches = [(torch.arange(2), torch.tensor([0, 1])), (torch.tensor([2]), torch.tensor([1]))]
    found = compared({"expected": lambda i: logits[i], "file": lambda i: other[i]}, batches)
    assert found["images"] == 3
    assert found["top1_expected"] == pytest.approx(200 / 3)
    assert found["top1_file"] == 100
    assert found["identical_file"] == pytest.approx(200 / 3)
    assert found["difference_file"] == pytest.approx(25)  # 1 of a spread of 4


@pytest.mark.integration
def test_a_file_in_its_runtime(bench: Bench) -> None:
    found = measured(
        bench, kind="in_runtime", target="onnxruntime", beside="onnxruntime", time_limit=0.5
    )
    assert found["integer"] == "10 of 10"
    assert found["identical"] == 100
    assert found["difference"] < 1e-4
    assert found["test_images"] == 360
    assert found["speed_1"] > 0 and found["beside_8"] > 0
    assert found["top1"] == found["student"] > 95


@pytest.mark.integration
def test_memory_is_that_of_a_process_of_its_own(bench: Bench) -> None:
    found = measured(bench, kind="memory", holdout=8, target="onnxruntime")
    assert found["weights"] == pytest.approx(0.31, abs=0.02)
    assert 100 < found["imports"] < 2000
    assert found["peak"] == pytest.approx(max(found["places"].values()), abs=0.01)
    assert found["where"] in found["places"]
    with pytest.raises(DatafreeError, match=r"process of its own failed: .*did you mean noise"):
        measured(bench, kind="memory", method="noize")


def test_memory_is_watched_while_it_is_held() -> None:
    with watched() as before:
        time.sleep(0.1)
    with watched() as seen:
        held = torch.ones(50_000_000)
        time.sleep(0.1)
    assert seen.most - before.most == pytest.approx(200, rel=0.1)
    assert seen.places == {"outside": seen.most}
    del held


@pytest.mark.integration
def test_the_proposal_of_a_run_is_followed(bench: Bench) -> None:
    found = measured(bench, kind="layer_bits", bits="W2A2", rounds=2)
    assert [option.partition(" ")[0] for option in found["proposed"]] == ["--layer-bits"] * 2
    assert len(set(found["proposed"])) == 2
    assert {"top1", "top1_1", "top1_2", "top1_noisiest"} <= set(found)
    assert found["divergence"] > 0.01


@pytest.mark.integration
def test_a_scheme_is_searched_without_labels_and_measured_with_some(bench: Bench) -> None:
    found = measured(bench, kind="max_drop", bound=50, images=16)
    assert found["taken"] == "W4A8" and found["tried"] == 1
    assert found["loss"] == pytest.approx(found["teacher"] - found["top1"])
    assert found["test_images"] == 360


@pytest.mark.integration
def test_steps_of_images_end_with_their_loss_or_at_the_papers(bench: Bench) -> None:
    asked = {"kind": "image_steps", "method": "zeroq", "images": 4}
    settled = measured(bench, **asked, method_options={"iterations": 450})
    assert 30 < settled["steps"] < 450 and settled["images"] == 4
    paper = measured(bench, **asked, protocol="paper", method_options={"iterations": 40})
    assert paper["steps"] == 40 and paper["processor_seconds"] > 0


def test_a_step_of_a_generator_is_timed_both_ways(bench: Bench) -> None:
    found = measured(bench, kind="generator_step", pixels=8, together=2, rounds=3)
    assert found["ratio"] == pytest.approx(found["plain"] / found["fused"])
    larger = measured(bench, kind="generator_step", pixels=16, together=2, rounds=3)
    assert larger["weights"] > found["weights"] > 0 and found["generator"] > 0


@pytest.mark.integration
def test_steps_are_measured_beside_the_bare_network(bench: Bench) -> None:
    names = ["zeroq", "dsg", "genie", "sadag", "qdrop", "dfqf"]
    found = measured(bench, kind="speed", together=4, rounds=2, steps=names)
    assert found["eager"] > 0
    assert found["floor"] in ("eager", "compiled")
    assert found["game"] > found["eager"]
    for name in names:
        assert 0.5 < found[name] < 200
        assert found["noise"][name] >= 0
    with pytest.raises(DatafreeError, match="cannot take the library of commit 0000000"):
        measured(bench, kind="speed", library="0000000")


def test_ratios_are_to_the_faster_floor() -> None:
    found = summary({"eager": [2.0, 2.0, 4.0], "compiled": [1.0, 2.0, 1.0], "dsg": [3.0, 3.0, 2.0]})
    assert (found["floor"], found["eager"], found["compiled"]) == ("compiled", 2000.0, 1000.0)
    assert found["dsg"] == 2.0
    assert found["noise"] == {"dsg": pytest.approx(0.7638, abs=1e-4)}
    assert summary({"eager": [1.0, 1.0], "dsg": [2.0, 3.0]})["dsg"] == 2.5
    game = summary({"eager": [1.0, 1.0], "game": [4.0, 4.0], "dfqf": [5.0, 5.0]})
    assert (game["dfqf"], game["floor"], game["game"]) == (1.25, "eager", 4000.0)


@pytest.mark.integration
def test_what_parts_cost_stands_beside_the_size_of_the_network(bench: Bench) -> None:
    every = ["capture", "answer", "zeroq", "dsg", "genie", "calibration", "genie_m", "allocation",
             "export", "run"]  # fmt: skip
    few = {"steps": 4, "generator_steps": 4, "learned_steps": 4, "together": 4}
    quick = {"method": "zeroq", "method_options": {"iterations": 2}, "holdout": 0, "images": 8}
    found = measured(
        bench, kind="cost", parts=every, target="onnxruntime", latency=False, **few, **quick
    )
    assert (found["layers"], found["blocks"], found["pixels"]) == (10, 5, 64)
    assert (found["images"], found["batch"], found["passes"]) == (8, 4, 1)
    assert found["weights"] == 77_072 and found["macs"] > found["weights"] < found["generator"]
    assert all(found[part]["seconds"] > 0 for part in every)
    for method in ("zeroq", "dsg", "genie", "genie_m"):
        assert 0 < found[method]["step"] < found[method]["seconds"]


def test_one_thread_is_for_a_while() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_step_is_the_median_of_what_lies_between_moments() -> None:
    """9 is the first span, which is left out; 1, 2 and 7 follow."""
    moments: dict[str, list[float]] = {}
    with noting(moments)("steps", 2) as step:
        step(1)
        step(1)
    assert len(moments["steps"]) == 2
    assert middle([0.0, 9.0, 10.0, 12.0, 19.0]) == 2.0


@pytest.mark.integration
def test_a_student_is_judged_that_saw_other_photos_or_real_images(bench: Bench) -> None:
    path = bench.place.shared / "data" / "dots.npz"
    path.parent.mkdir(parents=True)
    dots = np.random.default_rng(0).integers(0, 256, (8, 8, 8), np.uint8)
    np.savez(path, images=dots, labels=np.zeros(8, np.int64))
    found, other, real = (
        measured(bench, kind="verdict", bits="W2A2", **images)
        for images in ({"photos": "dots.npz", "photo_share": 1.0}, {}, {"real": True})
    )
    assert found["test_images"] == 360
    assert found["loss"] == pytest.approx(found["teacher"] - found["top1"])
    assert 0 < found["features"]["flips"] <= 1
    assert found["features"] != other["features"] != real["features"]


@pytest.mark.e2e
def test_the_command_with_its_defaults_is_timed_and_its_file_measured(bench: Bench) -> None:
    found = measured(bench, kind="default_run")
    assert found["top1"] > 95 and found["test_images"] == 360
    assert {"synthesis", "evaluation", "export"} <= set(found["stages"])
    # imports of its own process are in the one, and not in the other
    assert found["processor_seconds"] > 0.7 * sum(found["stages"].values())
    with pytest.raises(DatafreeError, match="cannot take the library of commit 0000000"):
        measured(bench, kind="default_run", library="0000000")


def test_the_command_is_given_weights_of_networks_trained_here(shared: Path) -> None:
    place = Place(Place.here().root, shared)
    network = load("lenet5_mnist", place)
    told = source_of("lenet5_mnist", network, Bench(place, silent))
    assert told == [
        f"{place.house / 'students.py'}:lenet5",
        "--weights-file", str(place.weights("lenet5_mnist")), "--input-shape", "1,28,28",
        "--mean", "0.1307", "--std", "0.3081",
    ]  # fmt: skip


def test_seconds_of_the_processor_are_those_of_the_command_alone() -> None:
    working = "import time\nwhile time.process_time() < 1: pass\nprint(input())"
    spent, told = timed([sys.executable, "-c", working], {}, "asked")
    assert 1 <= spent < 2
    assert told == "asked\n"
    assert timed([sys.executable, "-c", "import time; time.sleep(1)"], {})[0] < 0.5
    threads = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['A'])"
    assert timed([sys.executable, "-c", threads], {"A": "b"})[1] == "1 b\n"
    with pytest.raises(DatafreeError, match="its own failed: ValueError: no"):
        timed([sys.executable, "-c", "raise ValueError('no')"], {})
    with pytest.raises(DatafreeError, match="cannot run /no/python: No such file"):
        timed(["/no/python"], {})


@pytest.mark.integration
def test_another_toolkit_is_run_by_its_own_python(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATAFREE_MCT", raising=False)
    with pytest.raises(LeftOutError, match="DATAFREE_MCT names no Python with model-compression"):
        measured(bench, kind="mct_run")
    written = prepared(bench.network(RunConfig(model="digits_resnet8")), tmp_path)
    python = tmp_path / "python"  # stands for one: writes the float network, says what it was told
    python.write_text(
        f"#!{sys.executable}\nimport json, pathlib, shutil, sys\n"
        f"asked = json.load(sys.stdin)\nshutil.copy({str(written)!r}, asked['onnx'])\n"
        "assert pathlib.Path(sys.argv[2]).name == 'mct_alone.py' and sys.argv[1] == '-P'\n"
        "print(json.dumps({n: asked[n] for n in ('images', 'pixels', 'seed')}))\n"
    )
    python.chmod(0o755)
    monkeypatch.setenv("DATAFREE_MCT", str(python))
    found = measured(bench, kind="mct_run", seed=3)
    assert found["stages"] == {"images": 8, "pixels": 8, "seed": 3}
    assert found["top1"] == pytest.approx(99.72, abs=0.01)
    assert 0 < found["processor_seconds"] < 10


def test_the_other_toolkit_quantizes_on_its_own_images_by_its_own_defaults() -> None:
    """What it is called with, told by one that does nothing."""
    calls: list[Any] = []

    def generate(*given: Any) -> list[torch.Tensor]:
        calls.append(given)
        return [torch.full((1, 3, 4, 4), float(number)) for number in range(33)]

    def quantize(network: Any, data: Any) -> tuple[str, None]:
        for _ in range(2):  # as often as it is asked
            batches = [batch for (batch,) in data()]
            assert [batch.shape for batch in batches] == [(32, 3, 4, 4), (1, 3, 4, 4)]
            assert [batch[0, 0, 0, 0] for batch in batches] == [0, 32]
        calls.append(network)
        return "student", None

    def export(student: Any, path: str, data: Any, *, quantization_format: str) -> None:
        calls.append((student, path, quantization_format))

    mct = SimpleNamespace(
        data_generation=SimpleNamespace(
            pytorch_data_generation_experimental=generate,
            get_pytorch_data_generation_config=lambda: "defaults",
        ),
        ptq=SimpleNamespace(pytorch_post_training_quantization=quantize),
        exporter=SimpleNamespace(
            pytorch_export_model=export, QuantizationFormat=SimpleNamespace(FAKELY_QUANT="fake")
        ),
    )
    network = torch.nn.Identity()
    asked = {"images": 33, "pixels": 4, "seed": 0, "onnx": "a.onnx"}
    stages = quantized(mct, network, asked)
    assert calls == [(network, 33, 4, "defaults"), network, ("student", "a.onnx", "fake")]
    assert list(stages) == ["images", "quantization", "export"]
    assert all(seconds >= 0 for seconds in stages.values())


def test_the_other_toolkit_is_given_the_shared_network(shared: Path) -> None:
    network = built(shared / "data" / "networks.py", "resnet20_cifar10jpeg")
    assert not network.training
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
