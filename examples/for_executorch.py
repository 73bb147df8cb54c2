"""From a trained network to an ExecuTorch program, without any of its data.

pip install 'datafree[executorch]', then: python examples/for_executorch.py
"""

from __future__ import annotations

from pathlib import Path

import torch

import datafree
from datafree.export.base import predict
from datafree.export.pte import Pte
from datafree.zoo import load_digits_test


def main(folder: Path = Path("runs/executorch")) -> float:
    """Quantize the built-in network, write it for ExecuTorch and ask the file about real digits."""
    folder.mkdir(parents=True, exist_ok=True)
    result = datafree.quantize(
        "digits_resnet8", target="executorch", method="noise", images=64, holdout=0, export=False
    )
    path = folder / "student.pte"
    report = datafree.export_student(result.student, path, spec=result.spec, force=True)
    print(f"{path}: {report.bytes / 1000:.0f} kB; {report.parity}")
    for note in report.notes:
        print(note)
    pixels, labels = (torch.from_numpy(array) for array in load_digits_test())
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (result.spec.mean, result.spec.std))
    images = (pixels.reshape(-1, *result.spec.shape).float() / 255 - mean) / std
    top1 = 100 * float((predict(Pte().run(path), images).argmax(1) == labels).float().mean())
    print(f"top-1 of the file on {len(labels)} digits: {top1:.1f} %")
    return top1


if __name__ == "__main__":
    main()
