"""The blocks of the page on deployment run as they stand, where their runtime is installed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datafree
from conftest import ROOT
from datafree.zoo import load_digits_test

PAGE = ROOT / "docs" / "deploy.md"
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch.runtime",
    "litert": "ai_edge_litert.interpreter",
}
INPUT = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[str]:
    return INPUT.findall(PAGE.read_text(encoding="utf-8"))


def test_every_block_of_the_page_is_run_here() -> None:
    assert len(blocks()) == 1 + len(PACKAGES)


@pytest.mark.integration
@pytest.mark.parametrize(("position", "target"), list(enumerate(PACKAGES, 1)))
def test_a_block_names_the_digit(
    position: int, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip(PACKAGES[target])
    monkeypatch.chdir(tmp_path)
    datafree.quantize(
        "digits_resnet8", target=target, method="noise", images=64, holdout=0, output=Path(target)
    )
    digits, labels = load_digits_test()
    Image.fromarray(digits[0, :, :, 0]).save("digit.png")
    exec("\n".join((blocks()[0], blocks()[position])), {})
    assert capsys.readouterr().out.split()[-1] == str(labels[0])


def test_the_page_normalises_as_the_network_was_trained() -> None:
    from datafree.zoo import ZOO

    entry = ZOO["digits_resnet8"]
    told = [float(number) for number in re.findall(r"np\.float32\(([\d.]+)\)", blocks()[0])]
    assert np.allclose(told, [*entry.mean, *entry.std], atol=1e-6)
