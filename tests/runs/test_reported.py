"""Pages written again from the folder of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datafree.config import RunConfig
from datafree.errors import ConfigError, DataError
from datafree.runs.folder import REPORT
from datafree.runs.pipeline import run
from datafree.runs.reported import report_run
from datafree.zoo import load_digits_test

pytestmark = pytest.mark.integration

CONFIG = RunConfig(
    model="digits_resnet8", bits="W4A4", method="noise", images=6, calibrator="minmax", holdout=2,
    equalize=True, export=False, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "made"
    run(CONFIG, folder=path)
    return path


def drawn(folder: Path) -> dict[str, Any]:
    text = (folder / REPORT).read_text(encoding="utf-8")
    _, _, rest = text.partition('id="data">')
    return json.loads(rest.partition("</script>")[0])


def test_the_same_plots_come_out_of_the_folder(folder: Path) -> None:
    before = drawn(folder)
    (folder / REPORT).unlink()
    assert report_run(folder) == folder / REPORT
    after = drawn(folder)
    assert after.keys() == before.keys()
    for name, plot in after.items():
        if name.startswith(("weights", "input")):
            # Float weights are prepared once more, here with equalization.
            assert plot["clipped"] == pytest.approx(before[name]["clipped"], abs=1e-4)
            assert plot["sqnr_db"] == pytest.approx(before[name]["sqnr_db"], abs=1e-3)
            assert sum(plot["counts"]) == sum(before[name]["counts"])


def test_a_folder_of_pictures_is_compared_with(folder: Path, tmp_path: Path) -> None:
    pixels, _ = load_digits_test()
    for index in range(9):
        place = tmp_path / f"class{index % 2}"
        place.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(pixels[index]).squeeze()).save(place / f"{index}.png")
    report_run(folder, tmp_path)
    points = drawn(folder)["plane-pixels"]["points"]
    assert {name: len(one) for name, one in points.items()} == {
        "synthetic": 6, "noise": 6, "real": 6,
    }  # fmt: skip


def test_what_was_measured_later_is_told(folder: Path) -> None:
    later = [{"top1": {"teacher": 99.0, "student": 91.5}, "test_images": 360}]
    (folder / "evaluation.json").write_text(json.dumps(later), encoding="utf-8")
    report_run(folder)
    assert "91.50 %" in (folder / REPORT).read_text(encoding="utf-8")
    (folder / "evaluation.json").write_text("[]", encoding="utf-8")
    report_run(folder)
    assert "91.50 %" not in (folder / REPORT).read_text(encoding="utf-8")


def test_mistakes_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        report_run(tmp_path)
    with pytest.raises(DataError, match="there is no"):
        report_run(folder, tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no pictures"):
        report_run(folder, tmp_path)
