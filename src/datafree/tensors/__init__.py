"""What several stages ask of tensors and of the modules that hold them."""

from __future__ import annotations

import copy
import ctypes
import gc
import hashlib
import json
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from datafree.files import atomic_path, make_folder

M = TypeVar("M", bound=nn.Module)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of glibc's options
_LARGE, _NEVER = 2**25, 2**31 - 1  # bytes
_WORTHWHILE = 2**24  # bytes of weights


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of `module` are."""
    return next(module.parameters()).device


def fast_layout(network: M) -> M:
    """`network` itself, its weights channels-last from now on: same function, faster on a CPU.

    Tensors of three and five dimensions, of signals and of video, stay as they are.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            # contiguous() leaves the strides of 1 x 1 kernels, with which torch sums otherwise.
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return network


def fast_copy(network: M) -> M:
    """A copy of `network` in the layout of `fast_layout`, laid out as it is copied."""

    def laid(tensor: Tensor) -> Tensor:
        layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        return tensor.to(memory_format=layout, copy=True)

    return _copied(network, laid)


def _copied(network: M, made: Callable[[Tensor], Tensor]) -> M:
    """A copy of `network` whose parameters and buffers hold what is made of the data of each."""
    memo: dict[int, object] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        own = made(tensor.data)
        if isinstance(tensor, nn.Parameter):
            own = nn.Parameter(own, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = own
    return copy.deepcopy(network, memo)


def inner_product(one: Tensor, other: Tensor) -> Tensor:
    """``(one * other).sum()`` of two tensors of one shape, in one pass where both lie alike."""
    dense = one.is_contiguous() or (
        one.ndim == 4 and one.is_contiguous(memory_format=torch.channels_last)
    )
    if not dense or one.stride() != other.stride():
        return (one * other).sum()
    flat = (one.numel(),), (1,)
    return torch.dot(one.as_strided(*flat), other.as_strided(*flat))


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of all values; NaN where there is one.

    Taken sample by sample, since torch copies what is not laid out in its order.
    """
    ends = [torch.aminmax(part) for part in (values if values.ndim > 1 else (values,))]
    low, high = (torch.stack(side) for side in zip(*ends, strict=True))
    return low.min(), high.max()


def release_memory(network: nn.Module) -> None:
    """Give back to the system what work on `network` left; nothing is done for a small one.

    Graphs refer to themselves, so that copies of them outlive their last reader until Python looks
    for circles, which it rarely does; and the C library keeps what tensors of some megabytes leave
    for others that may come. Together that was half of a run's memory.
    """
    if sum(parameter.nbytes for parameter in network.parameters()) < _WORTHWHILE:
        return  # looking for circles takes longer than such a network's stages
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc has it, others do not
        trim(0)


@contextmanager
def kept_memory() -> Generator[None]:
    """Memory that tensors leave stays with this process while the context lasts, for the next ones.

    The C library returns the feature maps of every step to the system, which hands the same pages
    out again one by one, emptied: up to a fifth of a step's time. At the end all is given back.
    Tensors of over 32 MB come and go as ever: kept, they would leave holes that none fits into.
    Only glibc is asked; others are left as they are.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    tune = getattr(library, "mallopt", None)
    trim = getattr(library, "malloc_trim", None)
    if tune is None or trim is None:
        yield
        return
    # What glibc itself arrives at where tensors are large; said once, it stays.
    tune(_MMAP_THRESHOLD, _LARGE)
    tune(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        tune(_TRIM_THRESHOLD, 2 * _LARGE)
        trim(0)


def shared_copy(network: M) -> M:
    """A copy of `network` whose parameters and buffers are tensors of their own on the same memory.

    Replacing, moving or laying out a tensor of one leaves the other as it is; only writing into
    one's memory would change both. For a copy that nobody trains: it takes no memory for weights.
    """
    return _copied(network, lambda data: data)


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """Images (B, C, H, W) on `device`, in the layout in which convolutions are fastest."""
    return images.to(device, memory_format=torch.channels_last)


def random_numbers(seed: int, *purpose: object) -> torch.Generator:
    """Random numbers of their own for every purpose, on the CPU.

    They depend on nothing that was drawn before, so work that goes on after an interruption needs
    no state of them.

    Args:
        seed: of the run.
        *purpose: what they are for: strings and integers.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@torch.no_grad()
def initialise_uniform(layer: nn.Module, random: torch.Generator) -> None:
    """Fill weight and bias uniformly within ``1 / sqrt(fan in)``, as torch's modules do.

    Args:
        layer: a linear layer or convolution that has both.
        random: where the numbers come from, instead of torch's global ones.
    """
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    bound = weight[0].numel() ** -0.5
    weight.uniform_(-bound, bound, generator=random)
    bias.uniform_(-bound, bound, generator=random)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], request: Mapping[str, object], **extra: str
) -> None:
    """Write `tensors` to `path`, atomically, with all that they depend on.

    Args:
        path: a `.safetensors` file.
        tensors: by name, on any device.
        request: JSON values; only an equal request gets the tensors back.
        **extra: texts to keep beside them.
    """
    content = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        save_file(content, temporary, {"request": json.dumps(request, sort_keys=True), **extra})


def load_tensors(
    path: Path, request: Mapping[str, object]
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors, on the CPU, and texts that `save_tensors` wrote for an equal `request`.

    None where there is no such file, or one that cannot be read or belongs to another request.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    if metadata.get("request") != json.dumps(request, sort_keys=True):
        return None
    return tensors, metadata


def is_taken(root: nn.Module, path: str) -> bool:
    """Whether `root` has a module, parameter, buffer or any other attribute at `path`."""
    value: object = root
    for part in path.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True
