"""What everything that learns rounding has to keep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Frozen, Scheme
from datafree.errors import ConfigError, MemoryWarning, NoRoomError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, Quantizer
from datafree.reconstruction.base import Reconstructor
from datafree.testing.contract import Contract
from datafree.testing.networks import Grouped, InPlaceResidual, Tiny, images, ready
from datafree.testing.watching import Counter, ShortOfMemory, fingerprint

SCHEME = Scheme(bits="W3A4", weight_range="mse")


def prepared(
    network: type[nn.Module], scheme: Scheme = SCHEME
) -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    """A folded network, its student with calibrated ranges, and the images they are of."""
    torch.manual_seed(0)
    folded = fold_batch_norms(ready(network()))
    student = insert_quantizers(folded, scheme)
    x = images(24, 5)
    calibrate(student, [x], MSE(), observe="float")
    return folded, student, x


def content(student: fx.GraphModule) -> dict[str, bytes]:
    """All tensors of a student as bytes, for comparison."""
    return {n: v.contiguous().numpy().tobytes() for n, v in student.state_dict().items()}


class ReconstructionContract(Contract):
    """Weights end on their grids, quantizers are plain again, and work goes on where it stopped."""

    package = "datafree.reconstruction"
    base: type[Frozen] = Reconstructor
    method: Reconstructor
    """The reconstruction under test."""

    def chosen(self) -> Reconstructor:
        """The reconstruction under test."""
        return self.method

    @pytest.mark.parametrize("network", [InPlaceResidual, Grouped])
    @pytest.mark.parametrize("placement", ["every_input", "after_activation"])
    def test_afterwards_the_student_is_an_ordinary_one(
        self, network: type[nn.Module], placement: str
    ) -> None:
        """Kinds of modules and grids as before, every weight a code of its grid."""
        scheme = SCHEME.model_copy(update={"placement": placement, "policy": "brecq"})
        folded, student, x = prepared(network, scheme)
        kinds = {n: type(m) for n, m in student.named_modules()}
        grids = {n: m.grid for n, m in student.named_modules() if isinstance(m, Quantizer)}
        before = fingerprint(folded)
        outcomes = self.method.reconstruct(folded, student, x)
        assert outcomes
        assert {n: type(m) for n, m in student.named_modules()} == kinds
        assert {n: m.grid for n, m in student.named_modules() if isinstance(m, Quantizer)} == grids
        assert fingerprint(folded) == before, "the float network is left alone"
        assert bool(torch.isfinite(student(x)).all())
        for layer in student.modules():
            if isinstance(layer, QUANTIZED):
                quantizer = layer.weight_quantizer
                steps = layer.weight.detach() / quantizer.scale
                assert (steps - steps.round()).abs().max() < 1e-3
                torch.testing.assert_close(quantizer(layer.weight), layer.weight)

    def test_same_seed_same_student(self) -> None:
        """Torch's global random numbers have no part in it."""
        found: list[dict[str, bytes]] = []
        for _ in range(2):
            folded, student, x = prepared(Tiny)
            torch.manual_seed(len(found))
            self.method.reconstruct(folded, student, x, seed=3)
            found.append(content(student))
        assert found[0] == found[1]

    def test_memory_that_runs_out_halves_the_batch(self) -> None:
        """In the first unit: the student is that of a method with half the batch."""
        method = self.method.model_copy(update={"batch_size": 8})
        found: list[dict[str, bytes]] = []
        counter = Counter()
        folded, student, x = prepared(InPlaceResidual)
        with pytest.warns(MemoryWarning, match="did not fit into memory"), ShortOfMemory(4):
            outcomes = method.reconstruct(folded, student, x, seed=3, progress=counter)
        assert counter.done == counter.total
        assert {outcome.batch for outcome in outcomes} == {4}
        found.append(content(student))
        folded, student, x = prepared(InPlaceResidual)
        smaller = method.model_copy(update={"batch_size": 4})
        with pytest.warns(MemoryWarning), ShortOfMemory(4):
            smaller.reconstruct(folded, student, x, seed=3)
        found.append(content(student))
        assert found[0] == found[1]
        folded, student, x = prepared(InPlaceResidual)
        smaller.reconstruct(folded, student, x, seed=3)
        for name, value in content(student).items():
            given = torch.frombuffer(bytearray(value), dtype=student.state_dict()[name].dtype)
            other = torch.frombuffer(bytearray(found[0][name]), dtype=given.dtype)
            torch.testing.assert_close(given, other, rtol=1e-2, atol=1e-2)

    def test_units_that_are_learned_stay(self, tmp_path: Path) -> None:
        """Where memory runs out later; what is interrupted goes on with the smaller batch."""
        method = self.method.model_copy(update={"batch_size": 24})
        folded, whole, x = prepared(InPlaceResidual)
        counter = Counter()
        outcomes = method.reconstruct(folded, whole, x, progress=counter)
        if len(outcomes) < 2:
            return
        checkpoint = tmp_path / "student.safetensors"
        folded, student, x = prepared(InPlaceResidual)
        first = method.iterations  # every step passes one convolution of the first unit or more
        with pytest.warns(MemoryWarning), ShortOfMemory(12, after=first + 8):
            found = method.reconstruct(folded, student, x, checkpoint=checkpoint)
        assert found[0].batch == 24
        assert found[-1].batch == 12
        assert found[0] == outcomes[0]

    def test_not_even_one_image_fits(self) -> None:
        """One line that says what to do; the student's layers are its own again."""
        folded, student, x = prepared(Tiny)
        kinds = {n: type(m) for n, m in student.named_modules()}
        before = content(student)
        with pytest.warns(MemoryWarning), ShortOfMemory(0), pytest.raises(
            NoRoomError, match="not enough memory for one image"
        ):  # fmt: skip
            self.method.reconstruct(folded, student, x)
        assert {n: type(m) for n, m in student.named_modules()} == kinds
        assert content(student) == before

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_an_interrupted_call_goes_on_to_the_same_student(
        self, share: float, tmp_path: Path
    ) -> None:
        """Unit by unit; the checkpoint is gone at the end."""
        folded, whole, x = prepared(InPlaceResidual)
        counter = Counter()
        expected = self.method.reconstruct(folded, whole, x, progress=counter)
        assert counter.done == counter.total > 0
        checkpoint = tmp_path / "student.safetensors"
        _, student, _ = prepared(InPlaceResidual)
        with pytest.raises(KeyboardInterrupt):
            self.method.reconstruct(
                folded, student, x, progress=Counter(int(share * counter.total)),
                checkpoint=checkpoint,
            )  # fmt: skip
        assert [type(m) for m in student.children()] == [type(m) for m in whole.children()]
        assert all(m.enabled for m in student.modules() if isinstance(m, ActivationQuantizer))
        _, again, _ = prepared(InPlaceResidual)
        progress = Counter()
        found = self.method.reconstruct(folded, again, x, progress=progress, checkpoint=checkpoint)
        assert found == expected
        assert content(again) == content(whole)
        assert progress.done == progress.total
        assert not checkpoint.exists()

    def test_a_checkpoint_of_another_request_is_left_alone(self, tmp_path: Path) -> None:
        """Here one of other images."""
        checkpoint = tmp_path / "student.safetensors"
        folded, student, x = prepared(InPlaceResidual)
        counter = Counter()
        self.method.reconstruct(folded, student, x, progress=counter)
        _, student, _ = prepared(InPlaceResidual)
        stop = Counter(counter.total - 1)
        with pytest.raises(KeyboardInterrupt):
            self.method.reconstruct(folded, student, x, progress=stop, checkpoint=checkpoint)
        assert checkpoint.exists()
        other = x + 0.1
        _, fresh, _ = prepared(InPlaceResidual)
        self.method.reconstruct(folded, fresh, other)
        _, student, _ = prepared(InPlaceResidual)
        self.method.reconstruct(folded, student, other, checkpoint=checkpoint)
        assert content(student) == content(fresh)

    def test_values_on_disk_change_nothing(self) -> None:
        """What `memory_gb` has no room for is kept on disk."""
        found: list[dict[str, bytes]] = []
        for memory in (4.0, 1e-9):
            folded, student, x = prepared(Grouped)
            method = self.method.model_copy(update={"memory_gb": memory})
            method.reconstruct(folded, student, x)
            found.append(content(student))
        assert found[0] == found[1]

    def test_no_images_and_one(self) -> None:
        """None are refused in a line; one will do."""
        folded, student, x = prepared(Tiny)
        with pytest.raises(ConfigError, match="needs images"):
            self.method.reconstruct(folded, student, x[:0])
        self.method.reconstruct(folded, student, x[:1])
        assert bool(torch.isfinite(student(x)).all())
