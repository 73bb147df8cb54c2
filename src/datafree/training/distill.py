"""Data-free distillation into another architecture: DFQF's Algorithm 1 (A.5.2, Table 2)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import fx

from datafree.tensors import fast_copy
from datafree.training.base import Task
from datafree.training.dfqf import DFQF


class Distill(DFQF):
    """Teach a network of another architecture what the teacher knows, without data.

    DFQF's game (see `dfqf`), in which the student S is the new network and stays float: it learns
    ``L_S = CE(softmax(M(x)), softmax(S(x)))`` from the teacher M, and is judged in the second half
    of the distillation. With bits it is then quantized and fine-tuned under the same teacher, for
    `iterations` steps. 2000 epochs of 100 steps in the paper, the student's rate falling to a tenth
    every 800.
    """

    citation: ClassVar[str] = (
        "Li et al. (2020), DFQF: Data Free Quantization-aware Fine-tuning, ACML, Algorithm 1"
    )

    warmup: int = Field(default=200_000, ge=1)
    """Steps of the distillation, in which the student is the float network that `learner_lr`,
    `learner_decay` and `learner_milestones` speak of."""

    def passes(self) -> float:
        """The student learns in both phases, whatever the adversarial term weighs."""
        return self.passes_together() * self.batch_size * (self.warmup + self.iterations)

    def learner(self, task: Task) -> fx.GraphModule:
        """The task's own network, in its initial state."""
        return fast_copy(task.companion or task.teacher)
