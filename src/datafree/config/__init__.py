"""Frozen descriptions of what to do: the input of a network, the scheme, a whole run.

Unknown keys are errors everywhere. A `RunConfig` written to `config.yaml` repeats the run exactly.
"""

from datafree.config.base import Frozen, Hyperparameters, Method, build
from datafree.config.files import distillation, load_config, save_config
from datafree.config.merging import merge
from datafree.config.options import BudgetOptions, DistillOptions, ModelConfig, QuantizeOptions
from datafree.config.run import RunConfig
from datafree.config.scheme import Bits, Placement, Policy, Scheme
from datafree.config.spec import InputSpec

__all__ = [
    "Bits",
    "BudgetOptions",
    "DistillOptions",
    "Frozen",
    "Hyperparameters",
    "InputSpec",
    "Method",
    "ModelConfig",
    "Placement",
    "Policy",
    "QuantizeOptions",
    "RunConfig",
    "Scheme",
    "build",
    "distillation",
    "load_config",
    "merge",
    "save_config",
]
