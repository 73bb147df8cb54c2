"""How a paper's number is measured where its network and data are at hand: a command to paste.

The networks are those that have the float accuracy of the paper under a public name; weights are
fetched on the first use, and labelled images are the reader's own.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from benchmarks.targets import FLOAT, Target

NETWORKS: Mapping[tuple[str, str, str], str] = {
    ("T", "cifar10", "resnet20"): "pytorchcv:resnet20_cifar10",
    ("T", "imagenet", "resnet18"): "pytorchcv:resnet18",
    ("T", "imagenet", "resnet18(tv)"): "torchvision:resnet18",
    ("T", "imagenet", "resnet50"): "pytorchcv:resnet50",
    ("T", "imagenet", "squeezenext"): "pytorchcv:sqnxt23_w2",
    ("T", "imagenet", "inceptionv3"): "pytorchcv:inceptionv3",
    ("T", "imagenet", "shufflenet"): "pytorchcv:shufflenet_g1_w1",
    ("T", "imagenet", "mobilenetv2"): "pytorchcv:mobilenetv2_w1",
    ("S", "imagenet", "resnet18"): "pytorchcv:resnet18",
    ("S", "imagenet", "resnet50"): "pytorchcv:resnet50",
    ("S", "imagenet", "squeezenext"): "pytorchcv:sqnxt23_w2",
    ("A", "cifar100", "resnet20"): "pytorchcv:resnet20_cifar100",
}
"""Sources of `datafree` by paper, data and network."""
DATA = {"imagenet": "imagenet/val", "cifar10": "cifar10_test.npz", "cifar100": "cifar100_test.npz"}
"""Labelled images, as the reader would call them."""
_PLACES = "--target paper --placement after_activation"
_PLAIN = f"{_PLACES} --weight-range minmax --bias-correction none"
_ZEROQ = "--method zeroq --protocol paper --images 32"
_DSG = "--method dsg --protocol paper --images 40"
_LABEL = "--method-option label_weight=1"
_PRIOR = f"{_LABEL} --method-option tv_weight=0.01 --method-option l2_weight=0.01"
_DFQ = "--equalize --replace-relu6 --weight-granularity tensor"
_BY_DFQ = f"{_PLACES} {_DFQ} --calibrator minmax --bias-correction empirical"
_ADAROUND = f"{_PLACES} --reconstruction adaround --protocol paper --images 1024"
_GENIE = "--target paper --policy brecq --reconstruction genie_m --protocol paper --images 1024"
_METHODS: Mapping[str, str] = {
    "zeroq": f"{_PLAIN} {_ZEROQ} --calibrator minmax",
    "dsg": f"{_PLAIN} {_DSG} --calibrator minmax",
    "dsg-ptq": f"{_PLAIN} {_DSG} --calibrator minmax",
    "dfq": f"--target paper {_DFQ} --absorb-biases --calibrator bn_statistics"
    " --bias-correction analytic",
    **{
        f"{name}|calib={paper}": f"{_PLAIN} {images} --calibrator {rule}"
        for name, images in (("zeroq", _ZEROQ), ("dsg", _DSG))
        for paper, rule in (
            ("vanilla", "minmax"), ("percentile", "percentile"), ("ema", "ema"), ("mse", "mse")
        )
    },
    "zeroq|dfq": f"{_BY_DFQ} {_ZEROQ}",
    "dsg|dfq": f"{_BY_DFQ} {_DSG}",
    "zeroq|adaround": f"{_ADAROUND} --method zeroq",
    "dsg|adaround": f"{_ADAROUND} --method dsg",
    "dsg+label|adaround": f"{_ADAROUND} --method dsg {_LABEL}",
    "dsg+label+prior|adaround": f"{_ADAROUND} --method dsg {_PRIOR}",
    "gdfq": f"{_PLACES} --training gdfq",
    "dsg-qat": f"{_PLACES} --training dsg_qat",
    "genie": f"{_GENIE} --method genie",
    "sadag": f"{_GENIE} --method sadag",
}  # fmt: skip


def command(row: Target) -> str:
    """Measures a row on the network and data of its paper; empty where one of them has no name.

    Options are those that the papers name, at the library's defaults elsewhere.
    """
    network = NETWORKS.get((row.source[0], row.dataset, row.arch))
    if network is None or row.method not in _METHODS or row.bits == FLOAT:
        return ""
    words = ["datafree", "quantize", network, "--data", DATA[row.dataset]]
    return shlex.join([*words, "--bits", row.bits, *_METHODS[row.method].split()])
