"""State dicts in checkpoints, found and renamed so that they fit a network.

Trainings save more than a network: averages of its weights, a loss, a teacher, under names that
wrappers made longer. Whatever place and prefix makes the names fit is taken, and said where there
was a choice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from torch.nn.parameter import is_lazy

_COUNTERS = ("num_batches_tracked", "n_averaged")
"""End the names of what inference ignores: only one of file and network may have them."""
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that come from wrappers, of the network or of layers in it."""
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|averaged?)(?:[._]|$)")
_DEPTH = 4


@dataclass(frozen=True)
class Candidate:
    """A state dict as a network would name it.

    Attributes:
        keys: that lead to it in the checkpoint, joined by dots.
        prefix: of its names there, with its dot.
        state: its tensors.
        left: names in the same state dict that do not begin with the prefix.
    """

    keys: str
    prefix: str
    state: dict[str, Tensor]
    left: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where it stands in the checkpoint."""
        return ".".join(filter(None, (self.keys, self.prefix.rstrip("."))))

    @property
    def averaged(self) -> bool:
        """Whether its name says that it is a moving average of the weights."""
        return _AVERAGED.search(self.place) is not None

    def problems(self, wanted: Mapping[str, Tensor]) -> list[str]:
        """What keeps it from being the state of a network, in words; nothing where it fits."""
        own = self.state
        missing = [key for key in wanted if key not in own and not key.endswith(_COUNTERS)]
        foreign = [key for key in own if key not in wanted and not key.endswith(_COUNTERS)]
        common = [key for key in wanted if key in own]
        shapes = [
            f"{key} is {tuple(own[key].shape)} in the file, {tuple(wanted[key].shape)} in the"
            " network"
            for key in common
            if not is_lazy(wanted[key]) and own[key].shape != wanted[key].shape
        ]
        numbers = [
            f"{key} is {_dtype(own[key])} in the file, {_dtype(wanted[key])} in the network"
            for key in common
            if own[key].is_floating_point() != wanted[key].is_floating_point()
            and not key.endswith(_COUNTERS)
        ]
        told = (
            (missing, "tensors of the network are missing"),
            (foreign, "tensors are not of this network"),
            (shapes, "shapes differ"),
            (numbers, "kinds of numbers differ"),
        )
        return [f"{len(found)} {kind} ({some(found)})" for found, kind in told if found]


def candidates(content: Any, wanted: Mapping[str, Tensor]) -> list[Candidate]:
    """The state dicts in a checkpoint under the names of a network, the preferred one first.

    Averages of weights come before the weights themselves, as in the tools that write them; a
    teacher in the same file comes last.

    Args:
        content: of the file.
        wanted: state dict of the network.
    """
    found = [
        candidate
        for keys, state in _states(content, "", _DEPTH, set())
        for candidate in _named_as(keys, _bare(state, wanted), wanted)
    ]
    # Sorting keeps the order of the file among equals.
    return sorted(found, key=lambda one: (not one.averaged, "teacher" in one.place))


def told(chosen: Candidate, others: list[Candidate], wanted: Mapping[str, Tensor]) -> list[str]:
    """What a user should know of a choice: which weights it was, and what was left.

    Args:
        chosen: from a checkpoint.
        others: of which it was chosen, that fit too.
        wanted: state dict of the network.
    """
    lines: list[str] = []
    kind = "averaged weights" if chosen.averaged else "weights"
    if others:
        names = ", ".join(one.place or "those without a prefix" for one in others)
        lines.append(f"the {kind} {chosen.place or 'without a prefix'} were taken, not {names}")
    elif chosen.averaged:
        lines.append(f"the {kind} {chosen.place} were taken")
    beside = tuple(one.prefix for one in others if one.keys == chosen.keys and one.prefix)
    left = [name for name in chosen.left if not name.startswith(beside)]
    if left:
        lines.append(f"what is not of the network was left out: {some(left)} ({len(left)} in all)")
    pairs = {
        (_dtype(tensor), _dtype(wanted[key]))
        for key, tensor in chosen.state.items()
        if key in wanted and wanted[key].is_floating_point() and tensor.dtype != wanted[key].dtype
    }
    lines += [f"its {old} numbers became {new}, as in the network" for old, new in sorted(pairs)]
    return lines


def some(names: list[str], count: int = 3) -> str:
    """The first of some names."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def _states(
    content: Any, keys: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Dicts of tensors by name in `content`, with the keys that lead to each, outer ones first.

    One that stands in several places, which a few bytes can make billions of, is found in one.
    """
    if not isinstance(content, Mapping) or depth == 0 or id(content) in seen:
        return
    seen.add(id(content))
    items = cast("Mapping[Any, Any]", content).items()
    named = {key: value for key, value in items if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    for key, value in named.items():
        yield from _states(value, f"{keys}.{key}" if keys else key, depth - 1, seen)


def _bare(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the parts of names that come from wrappers, unless the network has them."""
    own = {part for name in wanted for part in name.split(".")}
    drop = _WRAPPERS - own
    bare = {
        ".".join(part for part in name.split(".") if part not in drop): tensor
        for name, tensor in state.items()
    }
    return bare if len(bare) == len(state) else state


def _named_as(
    keys: str, state: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> Iterator[Candidate]:
    """`state` without each prefix, or with the one, under which names of the network appear."""
    stripped = Counter(prefix for name in state for prefix in _prefixes(name, wanted))
    added = Counter(prefix for name in wanted for prefix in _prefixes(name, state))
    for prefix, _ in stripped.most_common():
        inside = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
        left = tuple(name for name in state if not name.startswith(prefix))
        yield Candidate(keys, prefix, inside, left)
    if not stripped:
        yield Candidate(keys, "", state)
    for prefix, _ in added.most_common(1):
        longer = Candidate(keys, "", {prefix + name: tensor for name, tensor in state.items()})
        if prefix and not longer.problems(wanted):
            yield longer


def _prefixes(name: str, known: Mapping[str, Tensor]) -> Iterator[str]:
    """The beginnings of `name`, up to a dot, behind which a `known` name stands."""
    at = 0
    while True:
        if name[at:] in known:
            yield name[:at]
        dot = name.find(".", at)
        if dot < 0:
            return
        at = dot + 1


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
