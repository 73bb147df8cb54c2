"""Networks without batch norms: what a run chooses by itself, and that everything runs on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import datafree
from datafree import load_run
from datafree.config import Frozen, RunConfig, build, merge
from datafree.config.options import ExciteOptions
from datafree.errors import ModelError, NetworkWarning, UnknownNameError
from datafree.graph.capture import capture
from datafree.models import from_module
from datafree.recipes import RECIPES, recipe_fields
from datafree.registry import available, load
from datafree.runs.choices import settled
from datafree.runs.finished import export_run, restored
from datafree.runs.page import page_of
from datafree.runs.pipeline import Result, run
from datafree.runs.sets import synthesize_set
from datafree.testing.networks import SPEC, Attending, NoNorm, Tiny, ready

pytestmark = pytest.mark.filterwarnings("ignore:no batch norms in this network")

QUICK = {
    "iterations": 2, "warmup": 2, "batch_size": 4, "calibration_images": 4, "holdout": 4,
    "checks": 1, "width": 4, "latent": 4, "margin_images": 4, "learner_milestones": [],
}  # fmt: skip
NETWORKS = {"attention": (Attending, "psaq"), "plain": (NoNorm, "prior")}


def config(**fields: Any) -> RunConfig:
    return build(RunConfig, {"model": "net", **fields}, "test")


def quick(package: str, name: str, **given: Any) -> dict[str, Any]:
    known = load(f"datafree.{package}", name, Frozen).model_fields
    return {**given, **{key: value for key, value in QUICK.items() if key in known}}


def trained(kind: str) -> nn.Module:
    """A network whose norms are not as they were created."""
    network = NETWORKS[kind][0]().eval()
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.8, 1.2)
    return network


def carried_out(kind: str, chosen: RunConfig) -> Result:
    teacher = from_module(trained(kind), input_shape=SPEC.shape, mean=SPEC.mean, std=SPEC.std)
    return run(chosen, teacher=teacher)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_default_fits_and_is_told(kind: str) -> None:
    chosen = config(images=2, bits="W4A8", holdout=2, export=False,
                    method_options={"iterations": 1})  # fmt: skip
    with pytest.warns(NetworkWarning) as told:
        result = carried_out(kind, chosen)
    method = NETWORKS[kind][1]
    assert result.config.method == method
    assert result.config.bias_rule == "empirical"
    assert dict(result.images.metadata)["method"] == method
    expected = f"no batch norms in this network: images by {method}, biases corrected on images"
    assert expected in [str(warning.message) for warning in told]
    assert expected in result.metrics["notes"]


def test_python_is_warned(recwarn: pytest.WarningsRecorder) -> None:
    net = NoNorm().eval()
    options: dict[str, Any] = {
        "input_shape": SPEC.shape, "mean": SPEC.mean, "std": SPEC.std, "images": 2,
        "method_options": {"iterations": 1},
    }  # fmt: skip
    with pytest.warns(UserWarning, match="no batch norms in this network: images by prior"):
        datafree.quantize(net, **options, export=False, holdout=0)
    with pytest.warns(UserWarning, match="no batch norms in this network: images by prior"):
        datafree.synthesize(net, **options)
    assert not recwarn.list


def test_networks_with_batch_norms_choose_as_ever() -> None:
    found = settled(config(bits="W4A8"), ready(Tiny()))
    assert (found.config.method, found.text) == ("dsg", "")
    assert found.config.bias_rule == "analytic"


def test_what_was_asked_for_is_not_changed() -> None:
    graph = ready(NoNorm())
    asked = config(method="noise", bias_correction="none", bits="W4A8")
    assert settled(asked, graph).config == asked
    assert settled(config(method="noise"), graph).text == "", "eight bits need no correction"
    learned = config(method="noise", reconstruction="adaround", bits="W4A8")
    assert settled(learned, graph).config == learned
    images = settled(config(), graph, given=True)
    assert "images by" not in images.text


def test_bits_that_are_allocated_later_count_too() -> None:
    found = settled(config(method="noise", average_bits=5.0), ready(NoNorm()))
    assert found.config.bias_correction == "empirical"


def test_names_that_nobody_has() -> None:
    with pytest.raises(UnknownNameError, match="psak"):
        settled(config(method="dsg,psak"), ready(NoNorm()))
    with pytest.raises(ModelError, match="this network has no such layer"):
        made = config(method="dsg,zeroq", images=2)
        synthesize_set(ready(NoNorm()), SPEC, made, ExciteOptions())


@pytest.mark.integration
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.command == "quantize"])
def test_every_recipe_runs(name: str, kind: str) -> None:
    fields = recipe_fields(name)
    short: dict[str, Any] = {"images": 4, "export": False, "bits": "W4A8", "holdout": 2}
    for field in ("method", "reconstruction"):
        if field in fields:
            short[f"{field}_options"] = {"iterations": 2}
    if "training" in fields:
        short["training_options"] = quick("training", fields["training"], weights="clip")
    result = carried_out(kind, build(RunConfig, merge({"model": "net", **fields}, short), name))
    assert torch.isfinite(result.student(result.images.images)).all()
    if fields.get("training") is None:
        assert result.config.method == NETWORKS[kind][1]


@pytest.mark.integration
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", [n for n in available("datafree.training") if n != "distill"])
def test_every_training_runs(name: str, kind: str) -> None:
    chosen = config(training=name, training_options=quick("training", name), bits="W4A4",
                    export=False, holdout=2)  # fmt: skip
    result = carried_out(kind, chosen)
    assert torch.isfinite(result.student(result.images.images)).all()


def test_a_resumed_run_chooses_the_same(tmp_path: Path) -> None:
    """The folder keeps what was asked, so that the same command is the same run."""
    fields: dict[str, Any] = {"images": 2, "method_options": {"iterations": 1}, "holdout": 0,
                              "export": False}  # fmt: skip
    teacher = from_module(NoNorm().eval(), input_shape=SPEC.shape, mean=SPEC.mean, std=SPEC.std)
    run(config(**fields), teacher=teacher, folder=tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert "dsg,psaq,prior" in text
    assert "images by prior" in (tmp_path / "run" / "metrics.json").read_text(encoding="utf-8")


def test_a_finished_run_is_read_back_with_what_it_chose(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "model": "digits_resnet8", "images": 2, "method_options": {"iterations": 1}, "holdout": 0,
        "latency": False,
    }  # fmt: skip
    run(build(RunConfig, fields, "test"), folder=tmp_path / "run")
    assert restored(tmp_path / "run").config.method == "dsg"
    export_run(tmp_path / "run", tmp_path / "again.onnx")
    again, first = (path.read_bytes() for path in
                    (tmp_path / "again.onnx", tmp_path / "run" / "student.onnx"))  # fmt: skip
    assert again == first


@pytest.mark.parametrize("method", ["zeroq", "dsg", "dsg,psaq,prior"])
def test_the_protocol_of_papers_takes_all_steps(method: str) -> None:
    graph = capture(ready(Tiny()), SPEC)
    own = settled(config(method=method), graph).config
    assert own.method_options == {}
    paper = settled(config(method=method, protocol="paper"), graph).config
    assert paper.method_options == {"least_fall": 0.0}
    assert settled(paper, graph).config == paper
    chosen = config(method=method, protocol="paper", method_options={"least_fall": 0.5})
    assert settled(chosen, graph).config.method_options == {"least_fall": 0.5}


def test_methods_whose_defaults_are_the_papers_get_no_option() -> None:
    graph = capture(ready(Tiny()), SPEC)
    found = settled(config(method="genie", protocol="paper"), graph).config
    assert found.method_options == {}


@pytest.mark.integration
@pytest.mark.parametrize("name", ["zeroq", "dsg", "gdfq", "dfqf", "brecq", "qdrop", "genie"])
def test_every_protocol_runs_and_is_told(name: str, tmp_path: Path) -> None:
    asked = config(model="digits_resnet8", protocol=name, bits="W4A4", images=4, export=False,
                   latency=False, holdout=0, isolate=False)  # fmt: skip
    update: dict[str, Any] = {}
    if asked.method != "dsg,psaq,prior":
        update["method_options"] = asked.method_options | quick("synthesis", str(asked.method))
    if asked.rounding:
        update["reconstruction_options"] = asked.reconstruction_options | {"iterations": 2}
    if asked.tuning:
        update["training_options"] = asked.training_options | quick("training", asked.tuning.name)
    result = run(asked.model_copy(update=update), folder=tmp_path / "run")
    told = result.config.protocol_told
    assert told is not None
    assert told.startswith(f"{name} but ")
    assert "images 4" in told or name in ("gdfq", "dfqf")
    assert result.metrics["protocol"] == told
    assert told.split(",")[0] in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    page = str(page_of(load_run(tmp_path / "run").stored))
    assert f"policy {result.config.policy}, protocol {told}, target paper" in page
