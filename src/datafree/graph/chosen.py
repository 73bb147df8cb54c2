"""Layers chosen by name or by pattern: those with bits of their own, and those left in float."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import fx

from datafree.config import Scheme
from datafree.config.widths import (
    first_match,
    input_of,
    is_pattern,
    matches,
    weights_of,
    width_for,
)
from datafree.errors import ConfigError, UnknownNameError

KEPT = "keep_float"
"""Under which a student, and a file of one, says which layers stay in float as asked."""
_NAMED = 3


def float_layers_of(names: Sequence[str], scheme: Scheme) -> frozenset[str]:
    """Which of the layers `names` a scheme keeps in float.

    Args:
        names: paths of all convolution and linear layers.
        scheme: of the student.

    Raises:
        ConfigError: a name or pattern in ``layer_bits`` or ``keep_float`` stands for no layer, both
            name the same layer, or no layer is left to quantize.
    """
    for field, patterns in (("layer_bits", scheme.layer_bits), (KEPT, scheme.keep_float)):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in names):
                raise _nothing(field, pattern, names)
    kept = {name: first_match(name, scheme.keep_float) for name in names}
    for name, pattern in kept.items():
        asked = width_for(name, scheme.layer_bits)
        if pattern is not None and asked is not None:
            raise ConfigError(
                f"keep_float {_told(pattern, name)} leaves {name} in float and layer_bits"
                f" {_told(asked[0], name)} gives it bits ({asked[1]}): take it out of one of them"
            )
    found = frozenset(name for name, pattern in kept.items() if pattern is not None)
    if names and len(found) == len(names):
        raise ConfigError(
            f"keep_float {', '.join(scheme.keep_float)} leaves all {len(names)} layers in float:"
            " nothing would be quantized, name fewer"
        )
    return found


def asked_weights(name: str, scheme: Scheme) -> int | None:
    """Bits that ``layer_bits`` gives the weights of layer `name`; None where it is not named."""
    asked = width_for(name, scheme.layer_bits)
    return None if asked is None else weights_of(asked[1])


def asked_input(name: str, scheme: Scheme) -> int:
    """Bits that layer `name` wants its input to have."""
    asked = width_for(name, scheme.layer_bits)
    own = None if asked is None else input_of(asked[1])
    return scheme.activations if own is None else own


def keep_in_float(student: fx.GraphModule, names: frozenset[str]) -> None:
    """Note on `student` that the layers `names` stay in float, for whoever looks at it later."""
    student.meta[KEPT] = tuple(sorted(names))


def kept_in_float(student: fx.GraphModule) -> tuple[str, ...]:
    """Paths of the layers of `student` that were asked to stay in float, sorted."""
    return tuple(student.meta.get(KEPT, ()))


def is_kept(student: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` calls a layer that was asked to stay in float."""
    return node.op == "call_module" and str(node.target) in student.meta.get(KEPT, ())


def _told(pattern: str, name: str) -> str:
    return repr(pattern) if pattern != name else "by its name"


def _nothing(field: str, pattern: str, names: Sequence[str]) -> ConfigError:
    """The error for a name or pattern that stands for no layer."""
    inside = [name for name in names if name.startswith(f"{pattern}.")]
    if inside:
        return ConfigError(
            f"{field}: {pattern} is no layer but a part of the network, with {len(inside)} layers"
            f" in it ({_some(inside)}): write {pattern}.*"
        )
    if not is_pattern(pattern):
        return UnknownNameError(f"layer in {field}", pattern, names)
    bare = pattern.translate(str.maketrans("", "", "*?[]"))
    close = difflib.get_close_matches(bare, names, n=_NAMED, cutoff=0.3) or names
    return ConfigError(
        f"{field}: no layer of this network is called {pattern!r}; the nearest are {_some(close)}"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
