"""From a trained network to an ONNX file that TensorRT's parser takes, without any of its data.

python examples/for_tensorrt.py, then: trtexec --onnx=runs/tensorrt/student.onnx --stronglyTyped
"""

from __future__ import annotations

from pathlib import Path

import onnx

import datafree
from datafree.export._legal import problems


def main(folder: Path = Path("runs/tensorrt")) -> list[str]:
    """Quantize the built-in network, write it for TensorRT, and ask for broken rules once more."""
    folder.mkdir(parents=True, exist_ok=True)
    result = datafree.quantize(
        "digits_resnet8", target="tensorrt", method="noise", images=64, holdout=0, export=False
    )
    path = folder / "student.onnx"
    report = datafree.export_student(result.student, path, spec=result.spec, force=True)
    print(f"{path}: {report.bytes / 1000:.0f} kB; {report.parity}")
    found = problems(onnx.load(path), "tensorrt")
    print("\n".join(found) or "no rule of TensorRT is broken")
    return found


if __name__ == "__main__":
    main()
