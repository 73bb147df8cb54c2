"""What is told of a student without labels, beside what it lost on labelled test images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.images import needs_images
from benchmarks.kinds.base import WITHOUT_PHOTOS, Bench, Kind, on_processor
from benchmarks.networks import Network
from datafree.config import RunConfig
from datafree.evaluate import Predictor
from datafree.files import atomic_path
from datafree.graph.capture import to_device
from datafree.graph.fold import fold_batch_norms
from datafree.graph.integer import as_computed
from datafree.images import SyntheticSet, batch_size
from datafree.losses import class_logits
from datafree.runs.judging import HELD_OUT_SEED
from datafree.runs.pipeline import run
from datafree.tensors import fast_layout
from datafree.verdict.features import judged_features
from datafree.verdict.held_out import held_out_images


class Verdict(Kind):
    """Features of held-out images, as the library computes them, and true loss of top-1.

    What networks answer is kept as files: a change of features alone needs no student anew.
    """

    held_out: int = 256
    """Images without labels."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network = bench.network(config)
        drawn = f" real {self.image_seed}" if self.real else ""
        path = self.kept(config.model_dump_json() + drawn, network, bench)
        if not path.exists():
            self._students_answers(config, bench, network).save(path)
        student, teacher = Answers.load(path), self._teachers_answers(config, bench, network)
        labels = teacher.labels
        right = [answers.test == labels for answers in (teacher, student)]
        top1 = [100 * float(hits.double().mean()) for hits in right]
        worst = None if student.worst_layer_db is None else float(student.worst_layer_db)
        found = judged_features(teacher.held_out, student.held_out, worst)
        return {
            "loss": top1[0] - top1[1],
            "top1": top1[1],
            "teacher": top1[0],
            "moved": 100 * float((right[0] != right[1]).double().mean()),
            "test_images": len(labels),
            "features": found.model_dump(mode="json"),
        }

    def kept(self, told: str, network: Network, bench: Bench) -> Path:
        """Where the answers are of what is described by `told`: a run, or how many test images."""
        told += f" {network.teacher.digest} {self.held_out} {HELD_OUT_SEED}"
        stem = hashlib.sha256(told.encode()).hexdigest()[:16]
        return bench.place.made / f"answers_{stem}.safetensors"

    def held_out_set(self, network: Network, bench: Bench) -> SyntheticSet:
        """The images without labels, made once for a network."""
        path = self.kept("images", network, bench)
        if not path.exists():
            made = held_out_images(
                to_device(network.graph, torch.device(bench.device)), network.teacher.spec,
                self.held_out, seed=HELD_OUT_SEED, progress=bench.progress,
            )  # fmt: skip
            made.save(path)
        return SyntheticSet.load(path)

    def _teachers_answers(self, config: RunConfig, bench: Bench, network: Network) -> Answers:
        path = self.kept(f"teacher {config.limit}", network, bench)
        if not path.exists():
            teacher = fast_layout(fold_batch_norms(network.graph))
            images = self.held_out_set(network, bench)
            Answers.of(teacher, images, network, config.limit, None).save(path)
        return Answers.load(path)

    def _students_answers(self, config: RunConfig, bench: Bench, network: Network) -> Answers:
        images = self.images(config, bench) if needs_images(config) else None
        changes = {
            "holdout": 0, "device": bench.device, "export": False, "isolate": False,
            **WITHOUT_PHOTOS,
        }  # fmt: skip
        alone = config.model_copy(update=changes)
        result = run(alone, teacher=network.teacher, images=images, progress=bench.progress)
        result = on_processor(result)
        worst = min(result.metrics.get("sqnr_db", {"": None}).values())
        held_out = self.held_out_set(network, bench)
        return Answers.of(as_computed(result.student), held_out, network, config.limit, worst)


@dataclass(frozen=True)
class Answers:
    """What one network says.

    Attributes:
        held_out: logits of the held-out images, (N, K).
        test: classes of the test images, (M,).
        worst_layer_db: least signal-to-noise ratio of a layer; None of a teacher.
        labels: of the test images, (M,).
    """

    held_out: Tensor
    test: Tensor
    worst_layer_db: float | None
    labels: Tensor

    @classmethod
    def of(
        cls, network: Predictor, images: SyntheticSet, known: Network, limit: int | None,
        worst_layer_db: float | None,
    ) -> Answers:  # fmt: skip
        """Ask `network`."""
        size, test, labels = batch_size(images.spec), list[Tensor](), list[Tensor]()
        with torch.inference_mode():
            logits = torch.cat([class_logits(network(x)) for x in images.batches(size)])
            for x, wanted in known.batches(limit):
                test.append(class_logits(network(x)).argmax(1))
                labels.append(wanted)
        return cls(logits, torch.cat(test), worst_layer_db, torch.cat(labels))

    def save(self, path: Path) -> None:
        """Write it to one file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"held_out": self.held_out.contiguous(), "test": self.test}
        tensors["labels"] = self.labels
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"worst_layer_db": json.dumps(self.worst_layer_db)})

    @classmethod
    def load(cls, path: Path) -> Answers:
        """Read what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            worst = json.loads((file.metadata() or {})["worst_layer_db"])
            held_out, test, labels = map(file.get_tensor, ("held_out", "test", "labels"))
            return cls(held_out, test, worst, labels)
