from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datafree.calibrators.base import RangeRule
from datafree.config import Frozen, build
from datafree.errors import ConfigError, UnknownNameError
from datafree.reconstruction.base import Reconstructor
from datafree.registry import available, built_in, load
from datafree.synthesis.base import Synthesizer
from datafree.synthesis.zeroq import ZeroQ
from datafree.training.base import Trainer

METHODS: dict[str, type[Frozen]] = {
    "datafree.synthesis": Synthesizer, "datafree.calibrators": RangeRule,
    "datafree.reconstruction": Reconstructor, "datafree.training": Trainer,
}  # fmt: skip
PACKAGES: dict[str, type] = {"datafree.synthesis": Synthesizer, "datafree.calibrators": RangeRule}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "some_methods"
    folder.mkdir()
    for name in ("__init__", "base", "_shared"):
        (folder / f"{name}.py").write_text("")
    imported = "class _Hidden(ValueError): ...\nfrom json import JSONDecodeError\n"
    (folder / "good.py").write_text(f"{imported}class Good(ValueError): ...\n")
    (folder / "none.py").write_text(imported)
    (folder / "two.py").write_text("class One(ValueError): ...\nclass Two(ValueError): ...\n")
    (folder / "broken.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "some_methods"
    for name in [name for name in sys.modules if name.partition(".")[0] == "some_methods"]:
        del sys.modules[name]


def test_files_are_methods(package: str) -> None:
    assert available(package) == ["broken", "good", "none", "two"]


def test_the_class_is_found(package: str) -> None:
    assert load(package, "good", ValueError).__name__ == "Good"


@pytest.mark.parametrize(("name", "count"), [("none", 0), ("two", 2)])
def test_a_method_file_defines_one_class(package: str, name: str, count: int) -> None:
    with pytest.raises(TypeError, match=f"ValueError, found {count}"):
        load(package, name, ValueError)


def test_unknown_methods_are_not_imported(package: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown some_methods 'god': did you mean good"):
        load(package, "god", ValueError)


@pytest.mark.parametrize("private", ["base", "_images", "__init__"])
def test_shared_code_is_no_method(private: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown image method"):
        load("datafree.synthesis", private, Synthesizer)


@pytest.mark.parametrize("name", list(PACKAGES))
def test_every_method_loads_under_its_own_name(name: str) -> None:
    for method in available(name):
        cls = load(name, method, PACKAGES[name])
        assert issubclass(cls, PACKAGES[name])
        assert cls().name == method


def test_the_methods_of_this_version() -> None:
    assert set(available("datafree.synthesis")) >= {"dsg", "noise", "zeroq"}
    assert set(available("datafree.calibrators")) >= {"ema", "minmax", "mse", "percentile"}
    assert load("datafree.synthesis", "zeroq", Synthesizer) is ZeroQ


def test_listing_does_not_import_methods() -> None:
    code = (
        "import sys; from datafree.registry import available; available('datafree.synthesis');"
        "sys.exit('torch' in sys.modules or 'datafree.synthesis.zeroq' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("package", METHODS)
def test_numbers_that_no_optimizer_takes_are_refused_by_every_method(package: str) -> None:
    for name in built_in(package):
        cls = load(package, name, METHODS[package])
        floats = [key for key, field in cls.model_fields.items() if field.annotation is float]
        for option in floats:
            for value in (1e38, float("inf"), float("nan")):
                with pytest.raises(ConfigError, match=rf"option of {name}: {option}"):
                    build(cls, {option: value}, f"option of {name}")
