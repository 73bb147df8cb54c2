from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from datafree.files import atomic_path, sha256, write_text


def test_text_arrives_whole_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "text.yaml"
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


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 5000)
    assert sha256(path) == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()
