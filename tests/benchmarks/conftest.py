"""A small house of its own for every test: one table, no records, one page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conftest import ROOT

HOUSE = ROOT / "benchmarks"
collect_ignore_glob = [] if (HOUSE / "table.py").exists() else ["*"]  # copies leave it out

TABLE = """
title: colours by size
base: {model: digits_resnet8, images: 4}
axes:
  size: {W8A8: {bits: W8A8}, W4A4: {bits: W4A4}}
  colour:
    red: {method: noise}
    blue: {method: zeroq, method_options: {iterations: 2}}
seeds: [0, 1]
changed:
  - {date: 2026-11-25, where: {colour: blue}, what: blue became darker}
views:
  top1:
    rows: [colour]
    columns: [size, {name: seconds, value: stages.all, decimals: 0, where: {size: W8A8}}]
    heads: [colour]
    labels: {blue: a kind of blue}
"""
PAGE = "# Colours\n\n<!-- table: colours top1 -->\n<!-- end -->\n\nAfter it.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the house without its tables and records, with the table `colours`."""
    copy = tmp_path / "copy"
    left_out = shutil.ignore_patterns("*.jsonl", "images", "*.yaml", "*.csv", "__pycache__")
    shutil.copytree(HOUSE, copy / "benchmarks", ignore=left_out)
    (copy / "benchmarks" / "tables" / "colours.yaml").write_text(TABLE, encoding="utf-8")
    (copy / "docs" / "results").mkdir(parents=True)
    (copy / "docs" / "results" / "colours.md").write_text(PAGE, encoding="utf-8")
    return copy
