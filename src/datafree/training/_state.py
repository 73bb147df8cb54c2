"""All that training changes, on disk and back: nothing is lost when a process is killed."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.tensors import load_tensors, save_tensors
from datafree.training._team import Team


@dataclass
class State:
    """What one phase of training changes.

    Attributes:
        modules: networks that learn, by name.
        optimizers: their optimizers, by name.
        step: steps taken.
        seconds: they took, over all calls.
        history: what was measured at every check.
        best: the student that would be kept, as a state dict …
        kept: … the step it was judged after …
        agreement: … and the highest in percent that any student was judged so far.
        batch: images per step; 0 is as the method says.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    kept: int = 0
    agreement: float | None = None
    batch: int = 0

    def consider(self, agreement: float, images: int, student: nn.Module) -> None:
        """Keep `student` unless it is measurably worse than the best judged before.

        Measurably: by more than one standard error of the best agreement on that many images. Of
        students that cannot be told apart the one that learned longest is kept.

        Args:
            agreement: of the student with its teacher, in percent.
            images: it was judged on.
            student: as it is now.
        """
        self.agreement = best = max(agreement, self.agreement or 0.0)
        if agreement >= best - math.sqrt(best * (100 - best) / images):
            self.kept = self.step
            self.best = {name: value.clone() for name, value in student.state_dict().items()}

    def share(self, team: Team) -> None:
        """Give all processes what the first one has: networks, and the best student."""
        for name, module in self.modules.items():
            team.share(list(module.state_dict().values()))
            if name == "student" and team.first_says(float(self.best is not None)):
                best = self.best or {k: v.clone() for k, v in module.state_dict().items()}
                team.share(list(best.values()))
                self.best = best


@dataclass
class Saved:
    """One file that holds a `State`, written every few minutes.

    Attributes:
        path: the file; None keeps nothing.
        request: all that the training depends on; a state of another request is not taken up.
        interval: seconds between two writings.
    """

    path: Path | None
    request: Mapping[str, object]
    interval: float
    _last: float = field(default_factory=time.monotonic)
    _begun: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def save_if_due(self, state: State) -> None:
        """Write `state` if the last writing was long enough ago."""
        if self.path is not None and time.monotonic() - self._last >= self.interval:
            self.save(state)

    def save(self, state: State) -> None:
        """Write `state`, atomically."""
        if self.path is None:
            return
        save_tensors(self.path, _tensors(state), self.request, told=json.dumps(_numbers(state)))
        self._last = time.monotonic()
        self._begun = None  # the file is newer

    def load(self, state: State) -> None:
        """Put what an earlier call with an equal request left into `state`."""
        found = None if self.path is None else load_tensors(self.path, self.request)
        if found is not None:
            _put(state, found[0], json.loads(found[1]["told"]))

    def begin(self, state: State) -> None:
        """Keep a copy of `state` in memory, until there is a file."""
        tensors = {name: value.detach().cpu().clone() for name, value in _tensors(state).items()}
        self._begun = tensors, copy.deepcopy(_numbers(state))

    def back(self, state: State) -> None:
        """Put what was kept last into `state`: in the file, or when it began."""
        if self._begun is None:
            self.load(state)
            return
        tensors, numbers = self._begun
        _put(state, tensors, copy.deepcopy(numbers))


def _numbers(state: State) -> dict[str, Any]:
    """All of `state` that are no tensors, JSON values."""
    names = ("step", "seconds", "history", "kept", "agreement", "batch")
    return {name: getattr(state, name) for name in names}


def _put(state: State, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    for name, module in state.modules.items():
        module.load_state_dict(_under(tensors, f"module.{name}."))
    for name, optimizer in state.optimizers.items():
        optimizer.state.clear()
        optimizer.zero_grad()
        _restore(optimizer, _under(tensors, f"optimizer.{name}."))
    state.best = _under(tensors, "best.") or None
    for name, value in numbers.items():
        setattr(state, name, value)


def _tensors(state: State) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, module in state.modules.items():
        tensors |= {f"module.{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in state.optimizers.items():
        for index, parameter in enumerate(_parameters(optimizer)):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{index}.{key}"] = value
    return tensors | {f"best.{key}": value for key, value in (state.best or {}).items()}


def _restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = _parameters(optimizer)
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        same = value.shape == parameter.shape and value.ndim > 0
        # In the layout of the parameter; counts of steps stay on the CPU, as torch has them.
        kept = torch.empty_like(parameter).copy_(value) if same else value
        optimizer.state[parameter][key] = kept


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
