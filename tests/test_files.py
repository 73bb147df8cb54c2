from __future__ import annotations

import errno
import hashlib
import io
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datafree.errors import OutputError
from datafree.files import Sink, atomic_path, make_folder, sha256, write_text


def test_text_arrives_whole(tmp_path: Path) -> None:
    path = tmp_path / "text.yaml"
    write_text(path, "größe: 1\n")
    assert path.read_bytes() == "größe: 1\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["text.yaml"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_writing_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old and longer")
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_is_taken_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".onnx"
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"x")
        assert not path.exists()
    assert path.read_bytes() == b"x"


def test_a_folder_that_vanished_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*gone/a.txt: the folder .*gone is not"):
        write_text(tmp_path / "gone" / "a.txt", "half a run")
    with pytest.raises(OutputError, match="cannot write"):
        make_folder(tmp_path / "gone" / "unfinished")
    assert list(tmp_path.iterdir()) == []
    make_folder(tmp_path / "made" / "unfinished", parents=True)
    assert (tmp_path / "made" / "unfinished").is_dir()


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OutputError, match=f"{name} is no regular file: choose another"):
            write_text(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo()


def by_text(path: Path) -> None:
    path.write_text("x" * 100_000)


def by_safetensors(path: Path) -> None:
    save_file({"x": torch.zeros(100_000)}, path)


def by_torch(path: Path) -> None:
    torch.save({"x": torch.zeros(100_000)}, path)


def by_numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(100_000))


@pytest.mark.parametrize("write", [by_text, by_safetensors, by_torch, by_numpy])
def test_a_file_that_grows_too_large_is_one_error_for_all_writers(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with (
            pytest.raises(OutputError, match=r"cannot write .*a\.bin: .*make room"),
            atomic_path(path) as temporary,
        ):
            write(temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), atomic_path(tmp_path / "a"):
        raise RuntimeError("shapes do not fit")


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 5000)
    assert sha256(path) == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()


class Full(io.BytesIO):
    """A file on a disk with room for five bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_sink_takes_everything_and_says_afterwards_what_failed() -> None:
    file = Full()
    sink = Sink(file)
    assert [sink.write(data) for data in (b"1234", b"5678", b"9")] == [4, 4, 1]
    assert file.getvalue() == b"1234"  # nothing after the gap
    sink.flush()
    with pytest.raises(OSError, match="No space left"):
        sink.check()


def test_a_sink_that_got_all_is_silent() -> None:
    file = io.BytesIO()
    sink = Sink(file)
    sink.write(b"12")
    sink.write(memoryview(b"34"))
    sink.flush()
    sink.check()
    assert file.getvalue() == b"1234"
