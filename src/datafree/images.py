"""Sets of images in normalised space, and the pictures people look at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from datafree.bounds import check_ordinary, first_line, json_of
from datafree.config import InputSpec
from datafree.config.inputs import Input
from datafree.errors import DataError
from datafree.files import IMAGE_FORMAT, atomic_path
from datafree.losses import pack, unpack
from datafree.tensors import on_device

_CLASS = torch.int64
_BATCH_VALUES = 40 * 3 * 224 * 224  # input values per forward pass: 40 ImageNet images
_PIECE_VALUES = 2 * 3 * 224 * 224


@dataclass(frozen=True)
class SyntheticSet(Dataset[tuple[Tensor, ...]]):
    """Images a network was asked to remember; also a `torch.utils.data.Dataset`.

    Attributes:
        images: (N, C, H, W) float32 in *normalised* space: feed them to the network as they are.
        spec: input of the network they were made for; holds the mean and std that `pixels` undoes.
        targets: (N,) int64 classes the images were made for, or None.
        metadata: how they were made: method, options, seed, final loss …; JSON values.
    """

    images: Tensor
    spec: InputSpec
    targets: Tensor | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse images that do not fit the spec or are not finite, and targets that do not fit."""
        if self.images.ndim != 4 or tuple(self.images.shape[1:]) != self.spec.shape:
            raise DataError(
                f"images of shape {tuple(self.images.shape)} do not fit inputs of {self.spec.shape}"
            )
        if not bool(torch.isfinite(self.images).all()):
            raise DataError(
                "the image set holds NaN or infinite values; lower the method's learning rate"
            )
        if self.targets is not None and self.targets.shape != self.images.shape[:1]:
            raise DataError(f"{len(self.targets)} targets for {len(self.images)} images")

    @classmethod
    def none(cls, spec: InputSpec) -> SyntheticSet:
        """No images: what a run that needs none has."""
        return cls(torch.zeros(0, *spec.shape), spec, metadata={"method": "none"})

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Image `index`, (C, H, W), followed by its target where there are targets."""
        if self.targets is None:
            return (self.images[index],)
        return self.images[index], self.targets[index]

    def batches(self, size: int) -> Iterator[Tensor]:
        """The images in order, in batches of at most `size`: (B, C, H, W)."""
        yield from self.images.split(size)

    def given(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """The inputs of the network by themselves, in batches of at most `size`: (B, …) each."""
        for batch in self.batches(size):
            yield unpack(batch, self.spec.inputs)

    def subset(self, count: int) -> SyntheticSet:
        """The first `count` images as a set of their own."""
        targets = None if self.targets is None else self.targets[:count]
        return replace(self, images=self.images[:count], targets=targets)

    def since(self, start: int) -> SyntheticSet:
        """The images from number `start` on as a set of their own; all where it is not above 0."""
        if start <= 0:
            return self
        targets = None if self.targets is None else self.targets[start:]
        return replace(self, images=self.images[start:], targets=targets)

    def fitted(self, spec: InputSpec, count: int | None = None) -> SyntheticSet:
        """The first `count` images, all where None, in the normalised space of another network.

        Raises:
            DataError: they have another shape, or there are fewer.
        """
        if self.spec.inputs or spec.inputs:
            return self._same_inputs(spec, count)
        if self.spec.shape != spec.shape:
            raise DataError(
                f"the images have shape {self.spec.shape}, and the network takes {spec.shape}:"
                " synthesize some for it"
            )
        part = self._first(count)
        if (self.spec.mean, self.spec.std) == (spec.mean, spec.std):
            return replace(part, spec=spec)
        mean, std, new_mean, new_std = (
            torch.tensor(v).view(1, -1, 1, 1)
            for v in (self.spec.mean, self.spec.std, spec.mean, spec.std)
        )
        images = (part.images * std + mean - new_mean) / new_std
        return replace(part, images=images, spec=spec)

    def _first(self, count: int | None) -> SyntheticSet:
        if count is not None and count > len(self):
            raise DataError(
                f"there are {len(self)} images, and {count} are wanted: ask for fewer, or"
                " synthesize more"
            )
        return self.subset(len(self) if count is None else count)

    def _same_inputs(self, spec: InputSpec, count: int | None) -> SyntheticSet:
        if self.spec.inputs != spec.inputs:
            own, other = (
                ", ".join(f"{one.name} {one.shape}" for one in s.inputs) or str(s.shape)
                for s in (self.spec, spec)
            )
            raise DataError(
                f"the set holds inputs {own}, and the network takes {other}, or normalises them"
                " otherwise: synthesize some for it"
            )
        return replace(self._first(count), spec=spec)

    def digest(self) -> str:
        """SHA-256 over shapes and bytes of images and targets: equal sets have equal digests."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().cpu().numpy().tobytes())
        if self.targets is not None:
            digest.update(self.targets.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def pixels(self) -> Tensor:
        """The images as people see them: (N, H, W, C) uint8, denormalised and clipped to 0..255.

        Of a network of several inputs those that its first image was.

        Raises:
            DataError: the network takes no image.
        """
        place = self.spec.picture
        if place is None:
            raise DataError("this network takes no image, so that there is nothing to look at")
        channels = slice(*place)
        mean = torch.tensor(self.spec.mean[channels]).view(1, -1, 1, 1)
        std = torch.tensor(self.spec.std[channels]).view(1, -1, 1, 1)
        scaled = (self.images[:, channels].cpu() * std + mean).clamp(0, 1) * 255
        return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def save(self, path: Path | str) -> None:
        """Write the set to one safetensors file, atomically."""
        tensors = {"images": self.images.contiguous().cpu()}
        if self.targets is not None:
            tensors["targets"] = self.targets.contiguous().cpu()
        described = {"spec": self.spec.model_dump(mode="json"), "metadata": dict(self.metadata)}
        # One entry: safetensors writes several in no fixed order, and equal sets would differ.
        header = {IMAGE_FORMAT: json.dumps(described, sort_keys=True)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, header)

    @staticmethod
    def load(path: Path | str) -> SyntheticSet:
        """Read a set written by `save`.

        Raises:
            DataError: the file is missing, damaged, or not an image set of this project.
        """
        try:
            check_ordinary(path)
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if IMAGE_FORMAT not in header:
                    raise DataError(f"{path} is not an image set written by datafree")
                described = json_of(header[IMAGE_FORMAT])
                if not isinstance(described, dict) or not isinstance(described["metadata"], dict):
                    raise ValueError("its description is none that datafree writes")
                names = set(file.keys())
                targets = file.get_tensor("targets") if "targets" in names else None
                images = file.get_tensor("images")
            if images.dtype != torch.float32 or (targets is not None and targets.dtype != _CLASS):
                raise ValueError("images must be float32, and targets int64")
            spec = InputSpec.model_validate(described["spec"])
            return SyntheticSet(images, spec, targets, described["metadata"])
        except DataError as error:
            told = str(error)
            raise DataError(told if str(path) in told else f"{path}: {told}") from None
        except Exception as error:  # noqa: BLE001 - a damaged file can fail in any way
            raise DataError(f"cannot read image set {path}: {first_line(error)}") from None

    def save_grid(self, path: Path | str, *, columns: int = 8, limit: int = 64) -> None:
        """Write a picture of the first `limit` images, denormalised, in rows of `columns`.

        Small images are enlarged by whole factors until a tile is at least 64 pixels high. Nothing
        is written of a network that takes no image.
        """
        if self.spec.picture is None:
            return
        from PIL import Image

        pixels = self.pixels()[:limit]
        height, width, channels = pixels.shape[1:]
        factor = max(1, -(-64 // height))
        pixels = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        gap = 2
        columns = min(columns, len(pixels))
        rows = -(-len(pixels) // columns)
        tile_h, tile_w = height * factor + gap, width * factor + gap
        canvas = torch.full(
            (rows * tile_h + gap, columns * tile_w + gap, channels), 255, dtype=torch.uint8
        )
        for index, image in enumerate(pixels):
            top, left = (index // columns) * tile_h + gap, (index % columns) * tile_w + gap
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
        array = canvas.squeeze(-1).numpy() if channels == 1 else canvas[..., :3].numpy()
        with atomic_path(path) as temporary:
            Image.fromarray(array).save(temporary)


def from_arrays(
    given: Mapping[str, Any] | Sequence[Any], spec: InputSpec, where: str, *, raw: bool = False
) -> Tensor:
    """(N, C, H, W) as graphs take it, of an array (N, …) for every input.

    Args:
        given: arrays by the names of inputs, or in their order.
        spec: of the network, which takes something else than an image.
        where: they come from, for messages.
        raw: images are pixels and values have their own unit, which `spec` normalises; otherwise
            only images as uint8 are normalised.

    Raises:
        DataError: an array is missing, or does not fit.
    """
    names = [one.name for one in spec.inputs]
    if isinstance(given, Mapping):
        missing = [name for name in names if name not in given]
        if missing:
            found = ", ".join(map(str, given)) or "nothing"
            raise DataError(f"{where} has no {' and no '.join(missing)} (it has: {found})")
        arrays = [given[name] for name in names]
    else:
        arrays = list(given)
    if len(arrays) != len(names):
        raise DataError(
            f"{where} has {len(arrays)} arrays, and the network takes {len(names)} inputs"
            f" ({', '.join(names)}): give one for each"
        )
    both = zip(arrays, spec.inputs, strict=True)
    tensors = [_fitting(torch.as_tensor(array), one, where, raw=raw) for array, one in both]
    counts = [len(tensor) for tensor in tensors]
    if len(set(counts)) != 1:
        told = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        raise DataError(f"{where} has different numbers of items: {told}")
    return pack(tensors, spec.inputs)


def _fitting(array: Tensor, one: Input, where: str, *, raw: bool) -> Tensor:
    """One input of all items, (N, *shape) float32 and normalised."""
    pixels = one.kind == "image" and array.dtype == torch.uint8
    if raw and one.kind == "image" and not pixels:
        raise DataError(
            f"{one.name} in {where} must be uint8 of shape (N, H, W, C), got"
            f" {str(array.dtype).removeprefix('torch.')} {tuple(array.shape)}"
        )
    if pixels and array.ndim == 3 and one.channels == 1:
        array = array.unsqueeze(1)
    elif pixels and tuple(array.shape[1:]) == (*one.shape[1:], one.channels):
        array = array.movedim(-1, 1)
    if tuple(array.shape[1:]) != one.shape or not array.ndim:
        raise DataError(
            f"{one.name} in {where} has shape {tuple(array.shape)}, and the network takes"
            f" {('N', *one.shape)}: give it in that shape".replace("'N'", "N")
        )
    values = array.float() / 255 if pixels else array.float()
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"{one.name} in {where} holds NaN or infinite values")
    if not (raw or pixels):
        return values
    shape = (-1, *[1] * (len(one.shape) - 1)) if one.shape else ()
    mean, std = (torch.tensor(numbers).reshape(shape) for numbers in (one.mean, one.std))
    return (values - mean) / std


def batch_size(spec: InputSpec) -> int:
    """Images per forward pass that fit any machine: 40 of ImageNet's size, 8 to 256."""
    channels, height, width = spec.shape
    return min(256, max(8, _BATCH_VALUES // (channels * height * width)))


def blank(spec: InputSpec, device: torch.device) -> Tensor:
    """(1, C, H, W) zeros, as an image of `spec` on `device`."""
    return on_device(torch.zeros(1, *spec.shape), device)


def device_batches(
    images: SyntheticSet, device: torch.device, size: int | None = None
) -> Iterator[Tensor]:
    """The images of a set on `device`, `size` at a time; None is `batch_size`."""
    for batch in images.batches(size or batch_size(images.spec)):
        yield on_device(batch, device)


def in_pieces(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The images of `batches` a few at a time, where nothing depends on the size of a batch.

    What networks hold between their layers takes more memory than the images themselves: two of
    ImageNet's size together keep it below that of the network.
    """
    for batch in batches:
        yield from batch.split(
            max(1, _PIECE_VALUES // max(1, batch[0].numel())) if len(batch) else 1
        )
