"""The networks that make images, and their files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from datafree.errors import DataError
from datafree.generators import (
    FORMAT,
    Generator,
    GeneratorConfig,
    generate,
    load_generator,
    save_generator,
)
from datafree.graph.taps import batch_norms, tap_outputs

CONDITIONS = ("none", "embedding", "batch_norm")
BODIES = ("upsample", "dcgan")
KINDS = list(itertools.product(BODIES, CONDITIONS))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0, **options: Any) -> Generator:
    config = GeneratorConfig.model_validate({"shape": shape, "classes": 5, "latent": 6, **options})
    return Generator(config, seeded(seed))


def state(generator: Generator) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in generator.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.equal(other[name]) for name, value in one.items()
    )


def wander(generator: Generator) -> Generator:
    """Running statistics and class scales that are not the initial ones."""
    with torch.no_grad():
        for name, value in generator.named_parameters():
            if name.endswith((".scale", ".shift")):
                value += 0.5 * torch.randn(value.shape, generator=seeded(7))
    for seed in range(3):
        generator(*generator.draw(9, seeded(seed)))
    return generator


def assert_normalised(images: Tensor) -> None:
    columns = images.detach().transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(columns.mean(1), torch.zeros_like(columns[:, 0]), rtol=0, atol=1e-4)
    variances = columns.var(1, correction=0)
    assert variances.min() > 0.97
    assert variances.max() < 1.0001


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 33, 30), (1, 96, 96), (3, 5, 4)])
@pytest.mark.parametrize(("body", "condition"), KINDS)
def test_images_of_any_size_are_normalised(
    body: str, condition: str, shape: tuple[int, int, int]
) -> None:
    net = make(shape, body=body, condition=condition)
    images = net(*net.draw(4, seeded(1)))
    assert images.shape == (4, *shape)
    assert_normalised(images)
    assert images.is_contiguous(memory_format=torch.channels_last) or shape[0] == 1


@pytest.mark.parametrize("body", BODIES)
def test_imagenet_sized(body: str) -> None:
    net = make((3, 224, 224), body=body, condition="none", latent=2)
    assert net(*net.draw(2, seeded())).shape == (2, 3, 224, 224)


def normalised(x: Tensor, eps: float = 1e-5) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def per_class(values: Tensor, labels: Tensor) -> Tensor:
    return values[labels][:, :, None, None]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize(
    ("shape", "cut"), [((3, 8, 8), (0, 0)), ((3, 10, 9), (1, 1)), ((1, 9, 6), (1, 1))]
)
def test_layers_of_gdfq(shape: tuple[int, int, int], cut: tuple[int, int], condition: str) -> None:
    net = wander(make(shape, condition=condition))
    z, labels = net.draw(4, seeded(1))
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def norm(x: Tensor, stage: int, eps: float) -> Tensor:
        x = normalised(x, eps)
        if condition != "batch_norm":
            return x
        assert labels is not None
        scale, shift = (weights[f"stages.{stage}.norm.{part}"] for part in ("scale", "shift"))
        return x * per_class(scale, labels) + per_class(shift, labels)

    def conv(x: Tensor, path: str) -> Tensor:
        return F.conv2d(x, weights[f"{path}.weight"], weights[f"{path}.bias"], padding=1)

    x = z if condition != "embedding" else z * weights["embedding.weight"][labels]
    base = (shape[1] + 3) // 4, (shape[2] + 3) // 4
    x = x @ weights["stages.0.layer.linear.weight"].T + weights["stages.0.layer.linear.bias"]
    features = [norm(x.view(4, *base, 128).permute(0, 3, 1, 2), 0, 1e-5)]
    for stage in (1, 2):
        x = norm(conv(doubled(features[-1]), f"stages.{stage}.layer.1"), stage, 0.8)
        features.append(torch.where(x > 0, x, 0.2 * x))
    x = conv(features[-1], "image")
    x = x[:, :, cut[0] : cut[0] + shape[1], cut[1] : cut[1] + shape[2]]

    seen: dict[str, Tensor] = {}
    with tap_outputs(net.blocks, seen.__setitem__):
        images = net(z, labels)
    torch.testing.assert_close(images, normalised(x.tanh()), rtol=1e-3, atol=1e-4)
    assert list(seen) == list(net.blocks)
    for block, expected in zip(seen.values(), features, strict=True):
        torch.testing.assert_close(block, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_layers_of_dcgan(condition: str) -> None:
    net = make((3, 10, 9), body="dcgan", condition=condition, eps=1e-5)
    z, labels = net.draw(4, seeded(1))
    weights = {name: value.detach() for name, value in net.named_parameters()}
    x = z if condition != "embedding" else z * weights["embedding.weight"][labels]
    x = (x @ weights["stages.0.layer.linear.weight"].T).view(4, 3, 3, 256).permute(0, 3, 1, 2)
    features = [normalised(x).relu()]
    x = F.conv_transpose2d(features[0], weights["stages.1.layer.weight"], stride=2, padding=1)
    features.append(normalised(x).relu())
    x = F.conv_transpose2d(features[1], weights["image.weight"], stride=2, padding=1)
    expected = normalised(x[:, :, 1:11, 1:10].tanh())
    seen: dict[str, Tensor] = {}
    with tap_outputs(net.blocks, seen.__setitem__):
        images = net(z, labels)
    torch.testing.assert_close(images, expected, rtol=1e-2, atol=1e-3)
    for block, wanted in zip(seen.values(), features, strict=True):
        torch.testing.assert_close(block, wanted, rtol=1e-3, atol=1e-3)


def test_weights_of_dcgan() -> None:
    for name, value in make((3, 32, 32), body="dcgan", latent=100).named_parameters():
        if name.endswith(("layer.weight", "linear.weight", "image.weight")):
            assert value.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(value.mean().item()) < 0.001, name


def count(generator: Generator) -> int:
    return sum(value.numel() for value in generator.parameters())


def test_numbers_of_parameters() -> None:
    """GDFQ on CIFAR-10: embedding, linear, norm, conv, norm, conv, norm, conv."""
    trunk = (100 * 8192 + 8192) + (128 * 128 * 9 + 128) + (128 * 64 * 9 + 64) + (64 * 3 * 9 + 3)
    norms = 128 + 128 + 64
    options: dict[str, Any] = {"shape": (3, 32, 32), "classes": 10, "latent": 100}
    assert count(make(**options)) == 10 * 100 + trunk + 2 * norms == 1_052_139
    assert count(make(**options, condition="none")) == trunk + 2 * norms
    assert count(make(**options, condition="batch_norm")) == trunk + 10 * 2 * norms
    dcgan = 100 * 256 * 64 + 256 * 128 * 16 + 128 * 3 * 16 + 2 * (256 + 128)
    assert count(make(**options, condition="none", body="dcgan")) == dcgan


def test_a_narrow_generator_has_fewer_channels_everywhere() -> None:
    """Width 32: 32 and 16 channels where GDFQ has 128 and 64."""
    trunk = (100 * 2048 + 2048) + (32 * 32 * 9 + 32) + (32 * 16 * 9 + 16) + (16 * 3 * 9 + 3)
    options: dict[str, Any] = {"shape": (3, 32, 32), "classes": 10, "latent": 100, "width": 32}
    assert count(make(**options)) == 10 * 100 + trunk + 2 * (32 + 32 + 16)
    hidden = 64 * 64 * 100 + 64 * 32 * 16 + 32 * 3 * 16 + 2 * (64 + 32) + 10 * 100
    assert count(make(**options, body="dcgan")) == hidden


def test_weights_are_those_torch_would_draw() -> None:
    net = make((3, 12, 8), seed=3, latent=16)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        usual = {
            "embedding": torch.nn.Embedding(5, 16),
            "stages.0.layer.linear": torch.nn.Linear(16, 128 * 3 * 2),
            "stages.1.layer.1": torch.nn.Conv2d(128, 128, 3),
            "stages.2.layer.1": torch.nn.Conv2d(128, 64, 3),
            "image": torch.nn.Conv2d(64, 3, 3),
        }
    for path, layer in usual.items():
        for part, value in layer.named_parameters():
            torch.testing.assert_close(net.get_parameter(f"{path}.{part}"), value)


@pytest.mark.parametrize(("body", "condition"), KINDS)
def test_the_source_given_decides_and_no_other(body: str, condition: str) -> None:
    before = torch.random.get_rng_state()
    one = make(body=body, condition=condition)
    images, labels = generate(one, 3, seeded(4))
    assert torch.random.get_rng_state().equal(before)
    torch.rand(5)
    two = make(body=body, condition=condition)
    again, labels_again = generate(two, 3, seeded(4))
    torch.random.set_rng_state(before)
    assert same(state(one), state(two))
    assert images.equal(again)
    if condition != "none":
        assert labels is not None and labels_again is not None
        assert labels.equal(labels_again)
    assert not same(state(one), state(make(body=body, condition=condition, seed=1)))
    assert not generate(one, 3, seeded(5))[0].equal(images)


def test_norms_behind_convolutions_have_the_published_epsilon() -> None:
    for condition in CONDITIONS:
        norms = batch_norms(make(condition=condition)).values()
        assert [norm.eps for norm in norms] == [1e-5, 0.8, 0.8, 1e-5]
        assert all(norm.track_running_stats for norm in norms)
    assert [norm.eps for norm in batch_norms(make(eps=0.1)).values()] == [1e-5, 0.1, 0.1, 1e-5]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("condition", ["embedding", "batch_norm"])
def test_conditional_images_depend_on_the_label(condition: str, train: bool) -> None:
    net = wander(make(condition=condition)).train(train)
    z, _ = net.draw(4, seeded())
    one, other = (net(z, torch.full((4,), label)) for label in (1, 2))
    assert not torch.allclose(one, other, atol=1e-2)
    with pytest.raises(DataError, match=f"needs a label for every image .condition {condition}"):
        net(z)


def test_unconditional_generators_refuse_labels() -> None:
    net = make(condition="none")
    z, labels = net.draw(4, seeded())
    assert labels is None
    with pytest.raises(DataError, match="takes no labels"):
        net(z, torch.zeros(4, dtype=torch.int64))


def test_draws() -> None:
    latents, labels = make(latent=50).draw(2000, seeded())
    assert latents.shape == (2000, 50)
    assert latents.mean().item() == pytest.approx(0, abs=0.01)
    assert latents.std().item() == pytest.approx(1, abs=0.01)
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.bincount(minlength=5).tolist() == pytest.approx([400] * 5, abs=80)


@pytest.mark.parametrize(("body", "condition"), KINDS)
def test_gradients_reach_latents_and_every_weight(body: str, condition: str) -> None:
    net = make(body=body, condition=condition)
    z, labels = net.draw(4, seeded())
    if labels is not None:
        labels = torch.arange(4)
    images = net(z.requires_grad_(), labels)
    (images * torch.randn(images.shape, generator=seeded(1))).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    for name, value in net.named_parameters():
        assert value.grad is not None, name
        assert value.grad.abs().sum() > 0, name


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_generating_changes_nothing(condition: str, train: bool) -> None:
    net = wander(make(condition=condition))
    net.stages[1].eval()
    modes = {name: module.training for name, module in net.named_modules()}
    before = state(net)
    images, labels = generate(net, 7, seeded(), batch=3, train_mode=train)
    assert same(state(net), before)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert not images.requires_grad
    assert images.is_contiguous()
    assert images.shape == (7, 3, 8, 8)
    if condition == "none":
        assert labels is None
    else:
        assert labels is not None and labels.shape == (7,)
    net.train()
    net(*net.draw(4, seeded()))
    assert not same(state(net), before), "training goes on gathering statistics"


def test_generating_leaves_the_mode_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make(condition="none").eval()
    before = state(net)

    def draw(*_: object) -> Any:
        return torch.randn(2, 99, generator=seeded()), None

    monkeypatch.setattr(net, "draw", draw)
    with pytest.raises(RuntimeError):
        generate(net, 2, seeded())
    assert not any(module.training for module in net.modules())
    assert all(norm.track_running_stats for norm in batch_norms(net).values())
    assert same(state(net), before)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_modes_of_generating(condition: str) -> None:
    """Batch statistics as in training; running ones as in evaluation."""
    net = wander(make(condition=condition))
    expected = net.eval()(*net.draw(6, seeded(1))).detach()
    found, _ = generate(net, 6, seeded(1), train_mode=False)
    torch.testing.assert_close(found, expected)
    expected = net.train()(*net.draw(6, seeded(1))).detach()
    found, _ = generate(net, 6, seeded(1))
    torch.testing.assert_close(found, expected)
    assert_normalised(found)


def test_batches_are_about_equal_and_normalised_by_themselves() -> None:
    images, _ = generate(make(), 10, seeded(), batch=4)
    for part in images.split([4, 3, 3]):
        assert_normalised(part)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 1)])
@pytest.mark.parametrize(("wanted", "batch"), [(1, 128), (3, 1), (3, 2)])
def test_single_images(shape: tuple[int, int, int], wanted: int, batch: int) -> None:
    for train in (True, False):
        images, labels = generate(make(shape), wanted, seeded(), batch=batch, train_mode=train)
        assert images.shape == (wanted, *shape)
        assert torch.isfinite(images).all()
        assert labels is not None and labels.shape == (wanted,)


@pytest.mark.parametrize(("body", "condition"), KINDS)
def test_files_bring_everything_back(tmp_path: Path, body: str, condition: str) -> None:
    net = wander(make(body=body, condition=condition, eps=0.3))
    path = tmp_path / "g.safetensors"
    save_generator(net, path, teacher="abc", steps=3)
    back, metadata = load_generator(path)
    assert metadata == {"teacher": "abc", "steps": 3}
    assert back.config == net.config
    assert back.training
    assert same(state(back), state(net))
    assert generate(back, 4, seeded())[0].equal(generate(net, 4, seeded())[0])
    first = path.read_bytes()
    save_generator(back, path, steps=3, teacher="abc")
    assert path.read_bytes() == first


def foreign(path: Path) -> None:
    save_file({"x": torch.zeros(2)}, path)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def no_safetensors(path: Path) -> None:
    path.write_text("images, please")


def missing(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def rewritten(path: Path, header: str, drop: Sequence[str] = ()) -> None:
    tensors = {name: value for name, value in load_file(path).items() if name not in drop}
    save_file(tensors, path, {FORMAT: header})


GOOD = '{"config": {"shape": [3, 8, 8], "classes": 5, "latent": 6}, "metadata": {}}'


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (foreign, "is not a generator written by datafree"),
        (damaged, "cannot read generator"),
        (no_safetensors, "cannot read generator"),
        (missing, "cannot read generator"),
        (folder, "cannot read generator"),
        (partial(rewritten, header="no json"), "cannot read generator"),
        (partial(rewritten, header="[]"), "cannot read generator"),
        (partial(rewritten, header="{}"), "cannot read generator"),
        (partial(rewritten, header='{"config": {"classes": 5}}'), "cannot read generator"),
        (partial(rewritten, header=GOOD.replace("8, 8", "9, 9")), "cannot read generator"),
        (partial(rewritten, header=GOOD, drop=["image.bias"]), "cannot read generator"),
    ],
)
def test_files_that_hold_no_generator(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "g.safetensors"
    save_generator(make(), path)
    spoil(path)
    with pytest.raises(DataError, match=message) as error:
        load_generator(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_good_header_is_good(tmp_path: Path) -> None:
    save_generator(make(), path := tmp_path / "g.safetensors")
    rewritten(path, GOOD)
    assert same(state(load_generator(path)[0]), state(make()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (0, 8, 8)},
        {"classes": 0},
        {"latent": 0},
        {"eps": 0.0},
        {"condition": "x"},
        {"y": 1},
    ],
)
def test_configurations_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GeneratorConfig.model_validate({"shape": (3, 8, 8), "classes": 5, **wrong})
