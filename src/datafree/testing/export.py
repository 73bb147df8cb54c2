"""What every export format has to keep."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Frozen, Scheme
from datafree.errors import ExportError, OutputError, OutputExistsError, ParityError
from datafree.export.base import Exporter
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.targets import load_target
from datafree.testing.contract import Contract
from datafree.testing.networks import SPEC, Tiny, images, ready
from datafree.testing.watching import fingerprint


class ExportContract(Contract):
    """A file is there only if its runtime computes what the student computes."""

    package = "datafree.export"
    base: type[Frozen] = Exporter
    method: Exporter
    """The format under test."""

    def chosen(self) -> Exporter:
        """The format under test."""
        return self.method

    def target(self) -> str:
        """Whose students the format writes."""
        return (*self.method.targets, "paper")[0]

    def student(self, bits: str = "W8A8", *, calibrated: bool = True) -> fx.GraphModule:
        """A small student; skips the test where the format's runtime is not installed."""
        if self.method.package:
            pytest.importorskip(self.method.package)
        torch.manual_seed(0)
        scheme = Scheme(bits=bits, target=self.target())
        student = insert_quantizers(fold_batch_norms(ready(Tiny())), scheme)
        if calibrated:
            calibrate(student, [images(16)], MSE())
        return student

    def path(self, folder: Path) -> Path:
        """A file of this format."""
        return folder / f"student{self.method.suffix}"

    @pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W4A4", "W8A32"])
    def test_the_file_computes_what_the_student_computes(self, bits: str, tmp_path: Path) -> None:
        """Any batch size, and the student is left alone; float activations may be refused."""
        weights, activations = (int(part) for part in bits[1:].split("A"))
        rules = load_target(self.target())
        if weights not in rules.weight_widths or activations not in {*rules.activation_widths, 32}:
            pytest.skip(f"{self.target()} has no {bits}")
        if activations == 32 and self.method.targets:
            with pytest.raises(ExportError, match="float"):
                self.method.export(self.student(bits), SPEC, self.path(tmp_path))
            assert not list(tmp_path.iterdir())
            return
        student, path = self.student(bits), self.path(tmp_path)
        before = fingerprint(student)
        report = self.method.export(
            student, SPEC, path, check=images(16, 1), about={"scheme": bits}
        )
        assert fingerprint(student) == before
        assert report.path == path
        assert report.bytes == path.stat().st_size > 0
        assert report.weight_bytes > 0
        assert report.parity.images == 16
        run = self.method.run(path)
        for count in (1, 5):
            logits = run(images(count, 2))
            assert logits.shape == (count, SPEC.classes)
            assert bool(torch.isfinite(logits).all())

    def test_a_file_that_exists_is_not_replaced_unless_told(self, tmp_path: Path) -> None:
        """What lies there stays as it is."""
        path = self.path(tmp_path)
        path.write_text("mine", encoding="utf-8")
        with pytest.raises(OutputExistsError, match="exists"):
            self.method.export(self.student(), SPEC, path)
        assert path.read_text(encoding="utf-8") == "mine"
        self.method.export(self.student(), SPEC, path, force=True)
        assert path.read_bytes() != b"mine"

    def test_what_is_no_regular_file_is_refused_before_it_is_opened(self, tmp_path: Path) -> None:
        """A pipe that nobody writes to would never end."""
        path = self.path(tmp_path)
        os.mkfifo(path)
        with pytest.raises(OutputError, match="is no regular file"):
            self.method.export(self.student(), SPEC, path, force=True)
        assert path.is_fifo()

    def test_a_student_without_ranges_leaves_no_file(self, tmp_path: Path) -> None:
        """It is refused with the name of the quantizer."""
        with pytest.raises(ExportError, match="quantizer x_quantizer has no range"):
            self.method.export(self.student(calibrated=False), SPEC, self.path(tmp_path))
        assert not list(tmp_path.iterdir())

    def test_a_student_made_for_others_leaves_no_file(self, tmp_path: Path) -> None:
        """It is refused with the target to choose; formats for all students have none."""
        student = self.student()
        student.meta["target"] = "another"
        if self.method.targets:
            with pytest.raises(ExportError, match=f"--target {self.method.targets[0]}"):
                self.method.export(student, SPEC, self.path(tmp_path))
            assert not list(tmp_path.iterdir())
        else:
            self.method.check_target(student)

    def test_a_file_that_differs_is_not_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A runtime that computes something else is caught."""
        run = type(self.method).run

        def wrong(method: Exporter, path: Path) -> object:
            predict = run(method, path)

            def negated(batch: Tensor) -> Tensor:
                return -predict(batch)

            return negated

        monkeypatch.setattr(type(self.method), "run", wrong)
        with pytest.raises(ParityError, match=r"student"):
            self.method.export(self.student(), SPEC, self.path(tmp_path))
        assert not list(tmp_path.iterdir())
