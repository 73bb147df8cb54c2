from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from datafree.config import RunConfig, load_config, save_config
from datafree.errors import ConfigError, DataError
from datafree.files import sha256
from datafree.generators import Generator, GeneratorConfig, generate, save_generator
from datafree.runs.pipeline import run
from datafree.synthesis.base import Stored, Synthesizer
from datafree.synthesis.generator import FromGenerator
from networks import SPEC, captured


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "g.safetensors"


def done(_: int) -> None:
    pass


def make(path: Path, seed: int = 0, **options: Any) -> Generator:
    config = GeneratorConfig.model_validate(
        {"shape": SPEC.shape, "classes": 5, "latent": 6, **options}
    )
    generator = Generator(config, torch.Generator().manual_seed(seed))
    generator(*generator.draw(9, torch.Generator().manual_seed(1)))
    save_generator(generator, path)
    return generator


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_images_are_the_generators(path: Path, mode: Any) -> None:
    generator = make(path)
    method = FromGenerator(path=path, mode=mode, batch_size=4)
    found = method.generate(captured("Tiny"), SPEC, 6)
    for batch in method.batches(captured("Tiny"), 6, 0, done):
        images, labels = generate(
            generator, 3, batch.generator, batch=4, train_mode=mode == "train"
        )
        assert labels is not None and found.targets is not None
        part = slice(batch.start, batch.start + batch.size)
        assert found.images[part].equal(images)
        assert found.targets[part].equal(labels)


def test_no_targets_without_condition(path: Path) -> None:
    make(path, condition="none", classes=77)
    assert FromGenerator(path=path).generate(captured("Tiny"), SPEC, 3).targets is None


@pytest.mark.parametrize("count", [1, 5])
def test_single_images(path: Path, count: int) -> None:
    make(path)
    for size in (1, 2, 4):
        made = FromGenerator(path=path, batch_size=size).generate(captured("Tiny"), SPEC, count)
        assert len(made) == count


def test_a_file_has_to_be_named() -> None:
    method = FromGenerator()
    with pytest.raises(ConfigError, match="name its file with the option path"):
        method.check(captured("Tiny"))
    with pytest.raises(ConfigError, match="name its file with the option path"):
        method.generate(captured("Tiny"), SPEC, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (1, 8, 8)}, "images of 1 x 8 x 8 of 5 classes.*takes 3 x 8 x 8 and knows 5"),
        ({"classes": 6}, "images of 3 x 8 x 8 of 6 classes.*takes 3 x 8 x 8 and knows 5 classes"),
        ({"shape": (3, 9, 8), "condition": "none"}, "images of 3 x 9 x 8, and.*takes 3 x 8 x 8"),
    ],
)
def test_generators_that_do_not_fit(path: Path, options: dict[str, Any], message: str) -> None:
    make(path, **options)
    with pytest.raises(DataError, match=message) as error:
        FromGenerator(path=path).generate(captured("Tiny"), SPEC, 2)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_read(path: Path) -> None:
    method = FromGenerator(path=path)
    with pytest.raises(
        DataError, match=r"there is no .*g\.safetensors: give a generator.s file, or one of images"
    ):
        method.check(captured("Tiny"))
    path.write_text("nothing")
    with pytest.raises(DataError, match="cannot read generator"):
        method.generate(captured("Tiny"), SPEC, 2)


def test_the_file_is_part_of_the_request(path: Path) -> None:
    make(path)
    method = FromGenerator(path=path)
    first = method.generate(captured("Tiny"), SPEC, 2)
    assert first.metadata["digest"] == sha256(path)
    request = method.request(captured("Tiny"), SPEC, 2, 0, stored=True)
    make(path, seed=1)
    assert method.request(captured("Tiny"), SPEC, 2, 0, stored=True) != request
    again = FromGenerator(path=path, digest=first.metadata["digest"])
    with pytest.raises(DataError, match="is another generator"):
        again.generate(captured("Tiny"), SPEC, 2)


def test_batches_of_another_generator_are_not_taken_up(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(path)
    method = FromGenerator(path=path, batch_size=2)
    folder = tmp_path / "checkpoint"

    def keep(_: Path | None) -> None:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(Stored, "clear", keep)
        method.generate(captured("Tiny"), SPEC, 4, checkpoint=folder)
    assert len(list(folder.iterdir())) == 2
    make(path, seed=1)
    expected = method.generate(captured("Tiny"), SPEC, 4)
    found = method.generate(captured("Tiny"), SPEC, 4, checkpoint=folder)
    assert found.digest() == expected.digest()


def test_the_network_is_not_asked() -> None:
    assert FromGenerator().passes(100) == 0
    assert Synthesizer.passes is not FromGenerator.passes


@pytest.mark.integration
def test_a_run_and_its_configuration(path: Path, tmp_path: Path) -> None:
    make(path, shape=(1, 8, 8), classes=10)
    config = RunConfig(
        model="digits_resnet8",
        method="generator",
        method_options={"path": str(path)},
        images=4,
        holdout=2,
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    result = run(config)
    assert result.images.targets is not None
    assert result.images.metadata["path"] == str(path)
