"""The exported file in onnxruntime against the student it was made from."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.kinds.base import Bench, Kind
from datafree.config import RunConfig
from datafree.export.onnx import Onnx


class OnnxParity(Kind):
    """Top-1 of both, percent of images they say the same of, size of the weights, seconds.

    onnxruntime runs in its exact mode.
    """

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network = bench.network(config)
        rows: list[torch.Tensor] = []
        with TemporaryDirectory() as folder:
            result = self.run(config, bench, Path(folder) / "run")
            predict = Onnx().run(Path(folder) / "run" / "student.onnx")
            with torch.inference_mode():
                for images, labels in network.batches(config.limit):
                    ours, theirs = result.student(images).argmax(1), predict(images).argmax(1)
                    rows.append(torch.stack((theirs == labels, ours == theirs), 1))
        onnx, identical = (100 * torch.cat(rows).double().mean(0)).tolist()
        told, written = result.metrics["top1"], result.metrics["onnx"]
        return {
            "top1": told["student"], "teacher": told["teacher"], "onnx": onnx,
            "identical": identical,
            "share": written["weight_bytes"] / written["float_weight_bytes"],
            "stages": {name: round(value, 1) for name, value in result.seconds.items()},
            "total": round(sum(result.seconds.values()), 1),
            "test_images": len(torch.cat(rows)),
        }  # fmt: skip
