"""What layers are called: after their weights in the file, or else their nodes."""

from __future__ import annotations

import re


def layer_path(weights: list[str], node: str, kind: str) -> str:
    """What a layer is called: after its weight, or else its node, or else its operator.

    ``layer1.0.conv1.weight`` gives ``layer1.0.conv1``, the node ``/layer1/layer1.0/conv1/Conv`` the
    same; numbered names that exporters draw, ``onnx::Conv_193`` or ``val_7``, tell nothing.

    Args:
        weights: names of its constants in the file.
        node: name of the node; may be empty.
        kind: its operator.
    """
    for name in weights:
        stem, dot, leaf = name.rpartition(".")
        if dot and leaf.startswith(("weight", "bias", "gamma", "kernel", "running_")):
            return stem
    scopes = [scope for scope in node.split("/") if scope]
    if len(scopes) > 1 and scopes[-1].startswith(kind):
        scopes.pop()
    path = ""
    for scope in scopes:
        path = scope if scope.startswith(f"{path}.") or not path else f"{path}.{scope}"
    return path or kind.lower()


def plain_path(name: str, forbidden: frozenset[str]) -> str:
    """`name` as the path of a submodule: words between dots, none of `forbidden` among them."""
    words = [re.sub(r"\W", "_", word) for word in re.split(r"[./:]+", name)]
    return ".".join(f"{word}_" if word in forbidden else word for word in words if word) or "layer"
