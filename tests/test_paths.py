"""Whoever writes a path as a text is served as with a `Path`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import datafree
from datafree.config import RunConfig, load_config, save_config
from datafree.data import calibration_set, open_labelled, real_images
from datafree.export.encodings import Encodings
from datafree.export.onnx import Onnx
from datafree.export.pt2 import Pt2
from datafree.generators import Generator, GeneratorConfig, load_generator, save_generator
from networks import SPEC

CONFIG = RunConfig(model="digits_resnet8", method="noise", images=8, export=False, latency=False)


def test_image_sets(tmp_path: Path) -> None:
    images = datafree.synthesize("digits_resnet8", method="noise", images=2)
    images.save(str(tmp_path / "a.safetensors"))
    images.save_grid(str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").exists()
    read = datafree.SyntheticSet.load(str(tmp_path / "a.safetensors"))
    assert torch.equal(read.images, images.images)
    with pytest.raises(datafree.DatafreeError, match="No such file"):
        datafree.SyntheticSet.load(str(tmp_path / "b.safetensors"))


def test_configurations(tmp_path: Path) -> None:
    save_config(CONFIG, str(tmp_path / "a.yaml"))
    assert load_config(str(tmp_path / "a.yaml")) == CONFIG
    with pytest.raises(datafree.DatafreeError, match="No such file"):
        load_config(str(tmp_path / "b.yaml"))


def test_generators(tmp_path: Path) -> None:
    config = GeneratorConfig(classes=3, latent=4, shape=(1, 8, 8), width=4)
    made = Generator(config, torch.Generator().manual_seed(0))
    save_generator(made, str(tmp_path / "a.safetensors"))
    assert load_generator(str(tmp_path / "a.safetensors"))[0].config == config


def test_labelled_data(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    np.savez(
        path, images=np.zeros((3, *SPEC.shape[1:], SPEC.shape[0]), np.uint8), labels=np.arange(3)
    )
    assert len(open_labelled(path, SPEC)) == 3
    assert len(calibration_set(path, SPEC, 2, 0)) == 2
    assert len(real_images(path, SPEC, 2, 0)) == 2


@pytest.mark.integration
def test_runs_and_files(tmp_path: Path) -> None:
    result = datafree.run(CONFIG, folder=str(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.json").exists()
    with pytest.raises(datafree.DatafreeError, match="exists"):
        datafree.run(CONFIG, folder=str(tmp_path / "run"))
    for exporter in (Onnx(), Pt2(), Encodings()):
        path = str(tmp_path / f"{exporter.name}{exporter.suffix}")
        exporter.export(result.student, result.images.spec, path)
        assert Path(path).exists()
