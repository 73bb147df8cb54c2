"""Learned rounding, block by block: one file per method."""
