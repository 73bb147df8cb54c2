"""Sets of images written for other tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datafree.config import RunConfig, load_config
from datafree.config.options import ExciteOptions
from datafree.errors import ConfigError, DataError, OutputExistsError
from datafree.images import SyntheticSet
from datafree.runs.pipeline import run
from datafree.runs.sets import synthesize_to_file
from datafree.testing.watching import Counter

pytestmark = pytest.mark.integration

CONFIG = RunConfig(
    model="digits_resnet8", method="noise", images=4, calibrator="minmax", holdout=0, export=False,
    device="cpu",
)  # fmt: skip
QUICK = ExciteOptions(excite_options={"steps": 2, "batch_size": 2})


def test_images_and_picture(tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    made = synthesize_to_file(CONFIG, path, QUICK)
    assert SyntheticSet.load(path).digest() == made.digest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.png", "images.safetensors"]
    assert made.metadata["excite"]["steps"] == 2
    with pytest.raises(OutputExistsError):
        synthesize_to_file(CONFIG, path)
    other = CONFIG.model_copy(update={"seed": 1})
    assert synthesize_to_file(other, path, QUICK, force=True).digest() != made.digest()


def test_the_methods_own_images(tmp_path: Path) -> None:
    off = ExciteOptions(excite=False)
    plain = synthesize_to_file(CONFIG, tmp_path / "plain.safetensors", off)
    assert "excite" not in plain.metadata
    assert plain.targets is None
    again = CONFIG.model_copy(update={"image_file": tmp_path / "plain.safetensors"})
    excited = synthesize_to_file(again, tmp_path / "b.safetensors", QUICK)
    direct = synthesize_to_file(CONFIG, tmp_path / "c.safetensors", QUICK)
    assert excited.digest() == direct.digest()


def test_other_forms(tmp_path: Path) -> None:
    made = synthesize_to_file(CONFIG, tmp_path / "a.npz", QUICK)
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["images"], made.images.numpy())
    synthesize_to_file(CONFIG, tmp_path / "b.npy", QUICK)
    assert np.array_equal(np.load(tmp_path / "b.npy"), made.images.numpy())
    synthesize_to_file(CONFIG, tmp_path / "c", QUICK)
    assert len(list((tmp_path / "c").glob("*.png"))) == 4
    assert (tmp_path / "c.png").is_file()


def test_what_stands_there_is_spared(tmp_path: Path) -> None:
    (tmp_path / "images.png").touch()
    with pytest.raises(OutputExistsError, match=r"images\.png"):
        synthesize_to_file(CONFIG, tmp_path / "images.safetensors")
    for name in ("other.png", "other.csv"):
        with pytest.raises(ConfigError, match=r"safetensors.*npz"):
            synthesize_to_file(CONFIG, tmp_path / name)
    unknown = ExciteOptions(excite_options={"step": 3})
    without = ExciteOptions(excite=False, excite_options={"steps": 3})
    for options in (unknown, without):
        with pytest.raises(ConfigError, match="excite"):
            synthesize_to_file(CONFIG, tmp_path / "x.npz", options)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_an_interrupted_set_goes_on(tmp_path: Path, share: float) -> None:
    whole = Counter()
    expected = synthesize_to_file(CONFIG, tmp_path / "a.npz", QUICK, progress=whole)
    with pytest.raises(KeyboardInterrupt):
        at = Counter(round(share * whole.total))
        synthesize_to_file(CONFIG, tmp_path / "b.npz", QUICK, progress=at)
    found = synthesize_to_file(CONFIG, tmp_path / "b.npz", QUICK)
    assert found.digest() == expected.digest()
    assert found.metadata == expected.metadata
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "a.png", "b.npz", "b.png"]


def test_a_run_on_a_file_of_images(tmp_path: Path) -> None:
    """Its configuration names the file, so that it is repeated and resumed on the same images."""
    path = tmp_path / "images.safetensors"
    made = synthesize_to_file(CONFIG, path, QUICK)
    config = RunConfig.model_validate({**CONFIG.model_dump(), "images": str(path)})
    assert config.image_file == path
    assert config.images == 4
    result = run(config, folder=tmp_path / "run")
    assert result.images.images.equal(made.images)
    assert load_config(tmp_path / "run" / "config.yaml").image_file == path
    fewer = config.model_copy(update={"images": 3})
    assert run(fewer).images.images.equal(made.images[:3])
    with pytest.raises(DataError, match="4 images, and 5"):
        run(config.model_copy(update={"images": 5}))
    assert torch.isfinite(made.images).all()
