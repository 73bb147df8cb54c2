"""Runtimes that carry files out: which layers get integer kernels, and how long a batch takes."""
