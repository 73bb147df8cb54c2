"""Pictures in a folder."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from datafree.errors import DataError
from datafree.files import atomic_path, make_folder, write_text
from datafree.images import SyntheticSet


def save_pictures(images: SyntheticSet, folder: str | Path) -> None:
    """Write every image as a PNG of 8 bits, not normalised, as a tool reads photographs.

    `0000.png` is the first. Where the images have targets, `labels.csv` has columns `filename` and
    `class_index`, as `--data` reads them. Rounding to 256 steps is all that is lost of a set that
    was made for other tools; of others what is darker than black or brighter than white is cut.

    Args:
        images: of one or three channels.
        folder: made where it does not exist; files of the same name are replaced.

    Raises:
        DataError: pictures have one or three channels.
    """
    from PIL import Image

    if images.spec.inputs:
        raise DataError("this network takes more than a picture: write its inputs as .npz")
    channels = images.spec.shape[0]
    if channels not in (1, 3):
        raise DataError(f"no picture has {channels} channels: write the images as .npz")
    folder = Path(folder)
    make_folder(folder, parents=True)
    digits = max(4, len(str(len(images) - 1)))
    names = [f"{number:0{digits}d}.png" for number in range(len(images))]
    for name, pixels in zip(names, images.pixels().numpy(), strict=True):
        with atomic_path(folder / name) as temporary:
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(temporary)
    if images.targets is not None:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("filename", "class_index"))
        rows.writerows(zip(names, images.targets.tolist(), strict=True))
        write_text(folder / "labels.csv", text.getvalue())
