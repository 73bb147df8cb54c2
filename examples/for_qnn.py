"""From a trained network to encodings for Qualcomm's converters, without any of its data.

python examples/for_qnn.py, then, where QNN is installed:
qnn-onnx-converter --input_network student.onnx --quantization_overrides student.encodings
"""

from __future__ import annotations

import json
from pathlib import Path

import datafree


def main(folder: Path = Path("runs/qnn")) -> dict[str, int]:
    """Quantize the built-in network and write a float network with encodings beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    result = datafree.quantize(
        "digits_resnet8", target="qnn", method="noise", images=64, holdout=0, export=False
    )
    path = folder / "student.encodings"
    report = datafree.export_student(result.student, path, spec=result.spec, force=True)
    print(f"{path}: {report.bytes / 1000:.0f} kB; {report.parity}")
    told = json.loads(path.read_text(encoding="utf-8"))
    counts = {kind: len(told[kind]) for kind in ("activation_encodings", "param_encodings")}
    print(counts)
    return counts


if __name__ == "__main__":
    main()
