"""What runtimes can execute in integers: one target, one file.

A file `targets/NAME.py` defines ``TARGET``, a `Target`; it is found by its name, and nothing else
has to know of it.
"""

from datafree.targets.base import Placement, Target, load_target, target_names

__all__ = ["Placement", "Target", "load_target", "target_names"]
