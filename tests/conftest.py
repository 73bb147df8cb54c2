"""Fixtures for all tests: one thread, one seed, and real files where they exist."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

# Processes that tests start share the cores with those of other tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ("commands",)

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests come first, so that no process waits for the last of them."""
    longest: dict[Path, int] = {}
    for item in items:
        own = sum(item.get_closest_marker(name) is not None for name in ("integration", "e2e"))
        own += item.get_closest_marker("e2e") is not None
        longest[item.path] = max(own, longest.get(item.path, 0))
    items.sort(key=lambda item: -longest[item.path])


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """A test draws the same alone, in any order, and on every machine."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real networks and images: $DATAFREE_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("DATAFREE_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data in {folder} (set DATAFREE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared_networks(shared: Path) -> Iterator[ModuleType]:
    """The module `networks.py` of the shared data; sys.path stays as it was."""
    name = "_shared_networks"
    spec = importlib.util.spec_from_file_location(name, shared / "data" / "networks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]
