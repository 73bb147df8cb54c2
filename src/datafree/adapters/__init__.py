"""Image sets in the form in which other tools take them.

    from datafree import adapters, SyntheticSet

    images = SyntheticSet.load("images.safetensors")
    adapters.for_onnxruntime(images, "net.onnx")    # a CalibrationDataReader
    adapters.for_nncf(images)                       # an nncf.Dataset
    adapters.for_mct(images)                        # a representative dataset
    adapters.for_aimet(images)                      # a callback of compute_encodings
    adapters.for_pt2e(images)                       # a calibration loop of prepare_pt2e
    adapters.save_numpy(images, "images.npz")
    adapters.save_pictures(images, "pictures")

A tool is imported when its adapter is called. Images stay in normalised space, which is what the
network takes; only pictures are pixels.
"""

from __future__ import annotations

from datafree.adapters.aimet import for_aimet
from datafree.adapters.mct import for_mct
from datafree.adapters.nncf import for_nncf
from datafree.adapters.numpy import save_numpy
from datafree.adapters.onnxruntime import for_onnxruntime
from datafree.adapters.pictures import save_pictures
from datafree.adapters.pt2e import for_pt2e

__all__ = [
    "for_aimet",
    "for_mct",
    "for_nncf",
    "for_onnxruntime",
    "for_pt2e",
    "save_numpy",
    "save_pictures",
]
