"""`.pt2` files of a student: complete, exact, and readable by the careful reader."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.base import Calibrator, calibrate
from datafree.config import InputSpec, Scheme
from datafree.errors import ExportError, OutputError, OutputExistsError, ParityError
from datafree.export.base import Exporter, Predictor
from datafree.export.pt2 import Pt2
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.models.archive import load_archive
from datafree.registry import load

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), classes=4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.head = nn.Conv2d(6, 6, 3, stride=2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *SPEC.shape, generator=torch.Generator().manual_seed(seed))


def ready(bits: int, *, calibrated: bool = True) -> fx.GraphModule:
    torch.manual_seed(0)
    folded = fold_batch_norms(capture(Net().eval(), SPEC))
    student = insert_quantizers(folded, Scheme(bits=f"W{bits}A{bits}"))
    if calibrated:
        calibrate(student, [images(8, 1)], load("datafree.calibrators", "minmax", Calibrator)())
    return student


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_reloaded_program_is_the_student(
    tmp_path: Path, bits: int, layout: torch.memory_format
) -> None:
    student, path = ready(bits), tmp_path / "student.pt2"
    report = Pt2().export(student.to(memory_format=layout), SPEC, path)  # pyright: ignore
    assert report.path == path and report.bytes == path.stat().st_size
    assert (report.opset, report.saturates, report.notes) == (None, False, ())
    assert report.parity.difference == 0 and report.parity.images == 32
    program = load_archive(path).module(check_guards=False)
    plain = ready(bits)
    with torch.no_grad():
        for batch in (1, 3):
            assert torch.equal(program(images(batch)), plain(images(batch)))


def test_captured_again(tmp_path: Path) -> None:
    student, path = ready(4), tmp_path / "student.pt2"
    Pt2().export(student, SPEC, path)
    with torch.no_grad():
        again = capture(load_archive(path), SPEC)
        assert torch.equal(again(images(2)), student(images(2)))


def test_scheme_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "student.pt2"
    Pt2().export(ready(4), SPEC, path, about={"scheme": "W4A4"})
    extra = {"scheme": ""}
    torch.export.load(path, extra_files=extra)
    assert extra["scheme"] == "W4A4"


def test_no_path_of_this_machine_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "student.pt2"
    Pt2().export(ready(4), SPEC, path)
    content = path.read_bytes()
    assert __file__.encode() not in content and torch.__file__.encode() not in content
    assert str(tmp_path).encode() not in content


class Noisy(Pt2):
    """Adds the smallest of errors when run."""

    def run(self, path: Path) -> Predictor:
        exact = super().run(path)
        return lambda batch: exact(batch) * (1 + 2e-7)


def test_any_difference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="differs from the student"):
        Noisy().export(ready(8), SPEC, tmp_path / "student.pt2")
    assert not list(tmp_path.iterdir())


def test_existing_file_and_missing_ranges(tmp_path: Path) -> None:
    path = tmp_path / "student.pt2"
    with pytest.raises(ExportError, match="has no range yet"):
        Pt2().export(ready(8, calibrated=False), SPEC, path)
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        Pt2().export(ready(8), SPEC, path)
    assert path.read_text() == "mine"


def test_found_by_name() -> None:
    assert load("datafree.export", "pt2", Exporter) is Pt2


@pytest.mark.parametrize("size", [0, 300, 5000])
def test_a_file_that_cannot_grow_is_refused_in_one_line(tmp_path: Path, size: int) -> None:
    """Not by torch's archive writer, which ends the process."""
    student = ready(8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*student\.pt2: File too large"):
            Pt2().export(student, SPEC, tmp_path / "student.pt2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
