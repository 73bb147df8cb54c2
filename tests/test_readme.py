"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import ROOT


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels, out in ((3, 8), (8, 16)):
        layers += [nn.Conv2d(channels, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    model(torch.randn(64, 3, 32, 32))  # statistics of its own
    return model.eval()


@pytest.mark.e2e
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 1
    assert '"10m"' in blocks[0]
    code = blocks[0].replace('"10m"', '"40s"')  # a training that ends early is one too
    known: dict[str, Any] = {"model": network(), "images": torch.randn(2, 3, 32, 32)}
    exec(compile(code, "README.md", "exec"), known)
    assert known["result"].student(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert torch.equal(
        known["run"].student(torch.ones(1, 3, 32, 32)),
        known["result"].student(torch.ones(1, 3, 32, 32)),
    )
    assert len(known["images"]) == 64
    assert known["tuned"].config.scheme.bits == "W2A2"
