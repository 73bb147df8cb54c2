"""Work that takes half as much at a time where memory runs out, and what is free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datafree.errors import MemoryWarning, NoRoomError
from datafree.tensors.memory import Portion, free_bytes, out_of_memory

CPU = torch.device("cpu")
TOLD = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory: you tried"


def denied(size: int, most: int) -> int:
    if size > most:
        raise RuntimeError(f"{TOLD} to allocate {size} bytes.")
    return size


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError(TOLD), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_tells_that_memory_ran_out(error: BaseException, expected: bool) -> None:
    assert out_of_memory(error) == expected


def test_a_real_allocation_that_fails_is_recognised() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


def test_half_as_many_until_they_fit() -> None:
    portion, asked = Portion("calibration", 40), list[int]()

    def work(size: int) -> int:
        asked.append(size)
        return denied(size, 6)

    with pytest.warns(MemoryWarning) as told:
        assert portion.fit(work) == 5
    assert asked == [40, 20, 10, 5]
    lines = [str(one.message) for one in told]
    assert lines[0] == ("calibration: 40 at a time did not fit into memory, going on with 20")
    assert len(lines) == 3
    assert portion.fit(lambda size: size) == 5, "what did not fit is not tried again"


def test_nothing_is_kept_of_what_did_not_fit() -> None:
    """The tensors of the attempt before are gone when the next begins."""

    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

    seen: list[int] = []

    def work(size: int) -> int:
        seen.append(Held.alive)
        held = Held()
        assert held
        return denied(size, 1)

    with pytest.warns(MemoryWarning):
        Portion("evaluation", 4).fit(work)
    assert seen == [0, 0, 0]


def test_the_end_is_one_line_that_says_what_to_do() -> None:
    with pytest.warns(MemoryWarning), pytest.raises(NoRoomError) as caught:
        Portion("genie images", 4, remedy="take another").fit(lambda size: denied(size, 0))
    message = str(caught.value)
    assert message.startswith("genie images: there is not enough memory for one image at a time")
    assert message.endswith("take another")
    assert "\n" not in message


def test_no_fewer_than_the_least() -> None:
    with pytest.warns(MemoryWarning), pytest.raises(NoRoomError, match="for 2 images at a time"):
        Portion("training", 5, least=2).fit(lambda size: denied(size, 1))


def test_other_errors_pass() -> None:
    def work(size: int) -> int:
        raise RuntimeError(f"shapes {size}")

    with pytest.raises(RuntimeError, match="shapes 4"):
        Portion("calibration", 4).fit(work)


def test_enough_memory_changes_nothing(recwarn: pytest.WarningsRecorder) -> None:
    assert Portion("evaluation", 256).afford(1e6, 1e9).size == 256
    assert Portion("evaluation", 256).afford(1e9, None).size == 256
    assert not recwarn.list


def test_what_is_free_decides() -> None:
    """100 MB an image in 1 GB, of which four fifths are planned with: eight at most."""
    with pytest.warns(MemoryWarning, match="evaluation: 8 at a time instead of 64"):
        assert Portion("evaluation", 64).afford(1e8, 1e9).size == 8
    with pytest.warns(MemoryWarning):
        assert Portion("evaluation", 64).afford(1e12, 1e9).size == 1


def machine(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


MEMINFO = {"proc__meminfo": "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 4000 kB\n"}


def test_available_memory(tmp_path: Path) -> None:
    assert free_bytes(CPU, machine(tmp_path, **MEMINFO)) == 4000 * 1024


def test_nothing_is_known_of_a_system_without_these_files(tmp_path: Path) -> None:
    assert free_bytes(CPU, tmp_path) is None
    assert free_bytes(torch.device("mps"), tmp_path) is None


def test_a_container_leaves_less_than_its_machine_has(tmp_path: Path) -> None:
    """Its limit less what it uses, but for pages of files that nobody uses."""
    group = {
        "sys__fs__cgroup__memory.max": "1000000\n",
        "sys__fs__cgroup__memory.current": "900000\n",
        "sys__fs__cgroup__memory.stat": "anon 5\ninactive_file 300000\n",
    }
    assert free_bytes(CPU, machine(tmp_path, **MEMINFO, **group)) == 400_000


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    files = {
        **MEMINFO,
        "proc__self__cgroup": "0::/jobs/one\n",
        "sys__fs__cgroup__jobs__memory.max": "700000",
        "sys__fs__cgroup__jobs__memory.current": "500000",
        "sys__fs__cgroup__jobs__one__memory.max": "max",
        "sys__fs__cgroup__jobs__one__memory.current": "400000",
    }
    assert free_bytes(CPU, machine(tmp_path, **files)) == 200_000


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    files = {
        **MEMINFO,
        "proc__self__cgroup": "9:cpu:/x\n4:memory:/jobs\n",
        "sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712",
        "sys__fs__cgroup__memory__memory.usage_in_bytes": "1",
        "sys__fs__cgroup__memory__jobs__memory.limit_in_bytes": "600000",
        "sys__fs__cgroup__memory__jobs__memory.usage_in_bytes": "500000",
        "sys__fs__cgroup__memory__jobs__memory.stat": "total_inactive_file 1000\n",
    }
    assert free_bytes(CPU, machine(tmp_path, **files)) == 101_000


def test_this_machine_has_some() -> None:
    free = free_bytes(CPU)
    assert free is None or free > 0
