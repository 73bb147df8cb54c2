"""Forward through float network and student together, one block at a time.

Only the values at the border of the block at hand are kept, so time is linear in depth and memory
is that of one block.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from datafree.graph.activations import Chunks, Rows, passed, stored
from datafree.graph.blocks import Block, output_name, subgraph
from datafree.graph.outputs import heads_of
from datafree.losses import Heads, class_logits, distillation
from datafree.quant.modules import QUANTIZED, ActivationQuantizer
from datafree.reconstruction._behind import Later
from datafree.reconstruction._learn import Task
from datafree.reconstruction._schedule import Stage
from datafree.tensors import device_of


@dataclass(frozen=True)
class _Border:
    """Values where a block begins: what the student computes there, and the float network."""

    student: Rows
    exact: Rows


def walk(  # noqa: PLR0913 - one walk, seven independent things to know
    folded: fx.GraphModule,
    student: fx.GraphModule,
    images: Tensor,
    blocks: Sequence[tuple[Block, Sequence[Block]]],
    stages: Sequence[Stage],
    done: int,
    limit: int,
) -> Generator[Task]:
    """What is to be learned, in order; the student moves on with what was learned meanwhile.

    Args:
        folded: the float graph.
        student: made from it.
        images: (N, C, H, W).
        blocks: blocks in order, each with the units it is learned in.
        stages: passes through the network.
        done: tasks at the beginning to leave out.
        limit: bytes a tensor of border values may take in memory.
    """
    place = 0
    for stage in stages:
        last = place + sum(len(units) for _, units in blocks)
        if done >= last:
            place = last
            continue
        with _activations(student, on=stage.activations):
            seen: set[str] = set()
            rows = stored(images, device_of(student), limit)
            border = _Border(rows, rows)
            later = Later.of(folded, rows, stage, limit)
            for block, units in blocks:
                ahead = passed(subgraph(folded, block.start, block.end), border.exact, limit)
                for unit in units:
                    part = subgraph(student, unit.start, unit.end)
                    layers = [n for n in _quantized(student, unit) if n not in seen]
                    quantizers = [name for name in _quantizers(part) if name not in seen]
                    seen.update(layers, quantizers)
                    if place >= done:
                        inputs, exact = _inside(folded, student, block, unit, border, limit)
                        targets = ahead
                        if unit != block:
                            targets = passed(subgraph(folded, unit.start, unit.end), exact, limit)
                        task = Task(
                            unit, stage, tuple(layers), tuple(quantizers), part, inputs, exact,
                            targets,
                        )  # fmt: skip
                        # Inside a block no single tensor decides what the network returns.
                        whole = unit.end == block.end
                        yield _with_the_rest(task, later, limit) if whole else task
                    place += 1
                after = passed(subgraph(student, block.start, block.end), border.student, limit)
                border = _Border(after, ahead)


def _with_the_rest(task: Task, later: Later, limit: int) -> Task:
    """With all that the rest of the network says of the end of the unit, a cut."""
    end, folded = task.unit.end, later.folded
    weights = None
    if task.stage.fisher:
        rest = subgraph(folded, end, output_name(folded))
        heads = heads_of(folded)
        weights = importance(rest, task.part, task.inputs, task.targets, limit, heads)
    answers, features = later.behind(end)
    return replace(task, importance=weights, answers=answers, features=features)


def _quantized(student: fx.GraphModule, unit: Block) -> list[str]:
    """The layers of a unit that do not stay in float."""
    return [n for n in unit.layers if isinstance(student.get_submodule(n), QUANTIZED)]


def _inside(
    folded: fx.GraphModule,
    student: fx.GraphModule,
    block: Block,
    unit: Block,
    border: _Border,
    limit: int,
) -> tuple[Rows, Rows]:
    """Inputs of a unit of `block`: the student's and the float network's."""
    if unit.start == block.start:
        return border.student, border.exact
    return (
        passed(subgraph(student, block.start, unit.start), border.student, limit),
        passed(subgraph(folded, block.start, unit.start), border.exact, limit),
    )


def importance(
    rest: nn.Module, part: nn.Module, inputs: Rows, targets: Rows, limit: int, heads: Heads = ()
) -> Rows:
    """BRECQ's diagonal Fisher weights: squared gradients of the KL divergence, with mean 1 (B.6).

    Args:
        rest: the float network from the end of the unit on.
        part: the unit of the student, as it is.
        inputs: of `part`.
        targets: what the float network has at the end of the unit.
        limit: bytes the weights may take in memory.
        heads: what the network returns, if it is more than logits: the divergence is then
            `datafree.losses.distillation` of all outputs.
    """

    def work(chunks: Chunks) -> tuple[Rows, float]:
        result: Rows | None = None
        total = 0.0
        for place, values in chunks:
            squared = _squared_gradients(rest, part, values, targets[place], heads)
            total += float(squared.mean()) * len(squared) / inputs.count
            result = result or Rows(inputs.count, squared, limit)
            result.write(place, squared)
        assert result is not None  # noqa: S101 - there is at least one image
        return result, total

    result, total = inputs.through(work)
    result.together = inputs.together

    for place, squared in result.chunks(result.together):
        result.write(place, squared / max(total, 1e-30))
    return result


def _squared_gradients(
    rest: nn.Module, part: nn.Module, values: Tensor, targets: Tensor, heads: Heads
) -> Tensor:
    """Of the divergence of what is returned, by the outputs of `part`."""
    with torch.no_grad():
        outputs = part(values)
        wanted = rest(targets)
    outputs.requires_grad_()
    if heads:
        divergence = distillation(rest(outputs), wanted, temperature=1.0, heads=heads)
    else:
        wanted = F.softmax(class_logits(wanted), dim=1)
        actual = F.log_softmax(class_logits(rest(outputs)), 1)
        divergence = F.kl_div(actual, wanted, reduction="sum")
    (gradient,) = torch.autograd.grad(divergence, [outputs])
    return gradient.square()


@contextmanager
def _activations(student: nn.Module, *, on: bool) -> Generator[None]:
    quantizers = [m for m in student.modules() if isinstance(m, ActivationQuantizer)]
    before = [quantizer.enabled for quantizer in quantizers]
    try:
        for quantizer, enabled in zip(quantizers, before, strict=True):
            quantizer.enabled = enabled and on
        yield
    finally:
        for quantizer, enabled in zip(quantizers, before, strict=True):
            quantizer.enabled = enabled


def _quantizers(part: fx.GraphModule) -> list[str]:
    return [n for n, module in part.named_modules() if isinstance(module, ActivationQuantizer)]
