"""Configurations, records and sets of strangers: nested, endless, or with sizes that nobody has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import refused
from safetensors.torch import save_file

from datafree.config import RunConfig, load_config
from datafree.config.files import save_config
from datafree.errors import ConfigError, DataError
from datafree.generators import (
    FORMAT,
    Generator,
    GeneratorConfig,
    load_generator,
    save_generator,
)
from datafree.images import SyntheticSet
from datafree.runs.stored import read_run

LAUGHS = "a0: &a0 [lol]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}\n"
    for level in range(1, 12)
)
TEXTS = [
    LAUGHS, MERGES, "a: &a [*a]", "[" * 200_000, "{a: " * 100_000, "- " * 50_000, "a: 2020-99-99",
    "a: " + "9" * 5000, "? [a]\n: 1", "!!python/object/apply:os.system [id]", "a: !!binary x",
    "\0", "a: !!timestamp x", "x: " + "1, " * 400_000, "model: [", "---\n---\n", "? {a: b}\n: c",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_configurations(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    refused(lambda: load_config(tmp_path / "config.yaml"), ConfigError)


def test_billions_of_laughs_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(LAUGHS)
    said = refused(lambda: load_config(tmp_path / "config.yaml"), ConfigError)
    assert "*a0 stands for values elsewhere: write them out" in said


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    run(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    refused(lambda: load_config(tmp_path / "config.yaml") and read_run(tmp_path), ConfigError)


def run(folder: Path) -> dict[str, Any]:
    save_config(RunConfig(model="digits_resnet8"), folder / "config.yaml")
    record = {"results": {"teacher": {}}, "environment": {"packages": {"datafree": "1"}}}
    (folder / "metrics.json").write_text(json.dumps(record))
    return record


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "[" * 900 + "]" * 900, '{"results": ' * 150 + "1" + "}" * 150, "null", "[]",
     '{"results": []}', '{"results": {"teacher": ' + "9" * 5000 + "}}"],
    ids=range(7),
)  # fmt: skip
def test_records(tmp_path: Path, text: str) -> None:
    run(tmp_path)
    (tmp_path / "metrics.json").write_text(text)
    refused(lambda: read_run(tmp_path), ConfigError)


@pytest.mark.parametrize("other", [[], "x", {"packages": 3}, {"packages": {"datafree": [1]}}])
def test_a_record_of_odd_versions(tmp_path: Path, other: Any) -> None:
    record = run(tmp_path) | {"environment": other}
    (tmp_path / "metrics.json").write_text(json.dumps(record))
    assert read_run(tmp_path).version is None
    (tmp_path / "config.yaml").write_text("modal: x")
    refused(lambda: read_run(tmp_path), ConfigError)


SIZES = {"shape": (1, 8, 8), "classes": 3, "latent": 4, "width": 8}


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": (1, 10**6, 10**6)}, {"classes": 10**12}, {"latent": 10**12}, {"width": 10**6},
        {"shape": (10**12, 8, 8)}, {"shape": (1, 10**30, 8)}, {"body": "dcgan", "width": 10**6},
        {"condition": "batch_norm", "classes": 10**12}, {"width": True}, {"eps": 1e400},
    ],
)  # fmt: skip
def test_a_generator_of_absurd_sizes(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "g.safetensors"
    state = Generator(GeneratorConfig.model_validate(SIZES), torch.Generator()).state_dict()
    header = json.dumps({"config": SIZES | changed, "metadata": {}})
    save_file({name: value.contiguous() for name, value in state.items()}, path, {FORMAT: header})
    assert str(path) in refused(lambda: load_generator(path), DataError)


def test_a_generator_of_its_own_sizes_is_read(tmp_path: Path) -> None:
    for changed in ({}, {"body": "dcgan"}, {"condition": "none"}, {"condition": "batch_norm"}):
        config = GeneratorConfig.model_validate(SIZES | changed)
        save_generator(Generator(config, torch.Generator()), tmp_path / "g.safetensors")
        assert load_generator(tmp_path / "g.safetensors")[0].config == config


def images(folder: Path, change: Callable[[Any], Any]) -> Path:
    path = folder / "images.safetensors"
    spec = {"shape": [1, 8, 8], "mean": [0.0], "std": [1.0], "classes": 3}
    described = change({"spec": spec, "metadata": {}})
    header = described if isinstance(described, str) else json.dumps(described)
    save_file({"images": torch.zeros(2, 1, 8, 8)}, path, {"datafree-images-1": header})
    return path


CHANGES: list[Callable[[Any], Any]] = [
    lambda d: [], lambda d: None, lambda d: "[" * 100_000, lambda d: d | {"metadata": []},
    lambda d: d | {"spec": d["spec"] | {"shape": [1, 10**9, 10**9]}},
    lambda d: d | {"spec": d["spec"] | {"std": [0.0]}}, lambda d: {"spec": d["spec"]},
    lambda d: d | {"spec": []}, lambda d: d | {"spec": d["spec"] | {"inputs": [{}]}},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_image_sets_that_describe_something_else(tmp_path: Path, change: Any) -> None:
    path = images(tmp_path, change)
    assert str(path) in refused(lambda: SyntheticSet.load(path), DataError)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float16, torch.bool])
def test_image_sets_of_other_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    path = images(tmp_path, lambda d: d)
    text = json.dumps(
        {"spec": SyntheticSet.load(path).spec.model_dump(mode="json"), "metadata": {}}
    )
    save_file({"images": torch.zeros(2, 1, 8, 8, dtype=dtype)}, path, {"datafree-images-1": text})
    assert "images must be float32" in refused(lambda: SyntheticSet.load(path), DataError)


@pytest.mark.parametrize("size", [2**63, 2**40, 101 * 10**6, 0])
def test_headers_of_absurd_sizes(tmp_path: Path, size: int) -> None:
    for reader in (SyntheticSet.load, load_generator):
        path = tmp_path / "x.safetensors"
        path.write_bytes(size.to_bytes(8, "little") + b"{}")
        refused(lambda reader=reader, path=path: reader(path), DataError)


@pytest.mark.parametrize("shape", [[2**32, 2**32], [10**6, 10**6], [-1], [2**63]])
def test_tensors_of_absurd_shapes(tmp_path: Path, shape: list[int]) -> None:
    header = {"images": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    refused(lambda: SyntheticSet.load(tmp_path / "x.safetensors"), DataError)
