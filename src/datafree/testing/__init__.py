"""Contracts that every method has to keep, as tests that an outside method runs in three lines.

    from datafree.testing import SynthesisContract
    from stripes import Stripes

    class TestStripes(SynthesisContract):
        method = Stripes(amplitude=2.0)

pytest collects the class and runs all tests of the contract on the method. Choose hyper-parameters
that make it quick: most tests run it several times. pytest itself is not installed with this
package.
"""

from datafree.testing.calibrators import CalibratorContract, ImagelessContract
from datafree.testing.export import ExportContract
from datafree.testing.reconstruction import ReconstructionContract
from datafree.testing.runtimes import RuntimeContract
from datafree.testing.synthesis import SynthesisContract
from datafree.testing.training import TrainingContract

__all__ = [
    "CalibratorContract",
    "ExportContract",
    "ImagelessContract",
    "ReconstructionContract",
    "RuntimeContract",
    "SynthesisContract",
    "TrainingContract",
]
