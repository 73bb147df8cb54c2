"""What all runtimes share."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from datafree.errors import InferenceError
from datafree.runtimes import Latency
from datafree.runtimes._timing import available_threads
from datafree.runtimes.onnxruntime import OnnxRuntime
from datafree.testing.watching import Counter
from onnx_graphs import Draft, conv, saved


class Absent(OnnxRuntime):
    """A package that nobody has."""

    package: ClassVar[str] = "datafree_no_such_runtime"
    extra: ClassVar[str] = "nosuch"


def student(folder: Path, batch: int | str = "n", size: int | str = 12) -> Path:
    draft = Draft()
    return saved(
        draft.model(draft.quantized(conv(draft), "o"), shape=(batch, 8, size, size)), folder
    )


def test_a_runtime_that_is_not_installed_names_its_extra() -> None:
    with pytest.raises(InferenceError, match=r"pip install 'datafree\[nosuch\]'"):
        _ = Absent().version


def test_a_file_says_what_size_its_images_have(tmp_path: Path) -> None:
    assert OnnxRuntime().image_shape(student(tmp_path)) == (8, 12, 12)


def test_a_size_that_the_file_leaves_open_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="--input-shape"):
        OnnxRuntime().image_shape(student(tmp_path, size="side"))


def test_all_threads_are_those_of_this_process(tmp_path: Path) -> None:
    path = student(tmp_path)
    found = OnnxRuntime().measure({"s": path}, (8, 12, 12), batches=(2,), seconds=0.05)
    assert [f.threads for f in found] == sorted({1, available_threads()})


def test_a_fixed_batch_takes_the_place_of_others(tmp_path: Path) -> None:
    path = student(tmp_path, batch=3)
    runtime = OnnxRuntime()
    found = runtime.measure({"s": path}, (8, 12, 12), threads=(1,), seconds=0.05)
    assert [f.batch for f in found] == [3]
    assert runtime.kernels(path, (8, 12, 12)).integer == 1


def test_medians_lie_between_quartiles_and_are_told_by_file(tmp_path: Path) -> None:
    path = student(tmp_path)
    progress = Counter()
    found = OnnxRuntime().measure(
        {"float": path, "student": path}, (8, 12, 12), batches=(1, 4), threads=(1,), seconds=0.05,
        progress=progress,
    )  # fmt: skip
    assert all(isinstance(f, Latency) and 0 < f.low <= f.milliseconds <= f.high for f in found)
    assert [f.file for f in found] == ["float", "student"] * 2
    assert progress.descriptions == ["latency in onnxruntime"]
    assert progress.done == progress.total == 2
