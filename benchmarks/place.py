"""Where things are: values that every part of the house is given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from datafree.errors import DataError
from datafree.files import make_folder


@dataclass(frozen=True)
class Place:
    """The folders of the house.

    Attributes:
        root: of the repository, or of a copy of it.
        shared: networks and images that are not part of the repository.
    """

    root: Path
    shared: Path

    @classmethod
    def here(cls) -> Place:
        """Around this file; shared data in ``$DATAFREE_SHARED``, or in `shared` beside it all."""
        root = Path(__file__).resolve().parents[1]
        return cls(root, Path(os.environ.get("DATAFREE_SHARED", root.parent / "shared")))

    @property
    def house(self) -> Path:
        """This package: tables, records, weights, what was made on the way."""
        return self.root / "benchmarks"

    @property
    def made(self) -> Path:
        """Folder of images and unfinished runs, which can be made again; it is there."""
        folder = self.house / "results" / "images"
        make_folder(folder, parents=True)
        return folder

    @property
    def pages(self) -> Path:
        """Markdown pages with tables in them."""
        return self.root / "docs" / "results"

    @property
    def rendered(self) -> tuple[Path, ...]:
        """All pages with something in them that is made from records."""
        beside = self.root / "docs" / "scaling.md"
        return (*sorted(self.pages.glob("*.md")), *([beside] if beside.exists() else []))

    @property
    def targets(self) -> Path:
        """Published results, and ours beside them."""
        return self.house / "targets.csv"

    def records(self, table: str) -> Path:
        """The records of a table."""
        return self.house / "results" / f"{table}.jsonl"

    def weights(self, network: str) -> Path:
        """What a network that was trained here learned."""
        return self.house / "weights" / f"{network}.safetensors"

    def data(self, name: str) -> Path:
        """A file or folder of the shared data.

        Raises:
            DataError: it is not there.
        """
        path = self.shared / "data" / name
        if not path.exists():
            raise DataError(
                f"there is no {path}: set DATAFREE_SHARED to the folder that has data/{name}"
            )
        return path
