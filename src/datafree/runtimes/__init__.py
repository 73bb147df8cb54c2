"""Runtimes that carry files out: which layers get integer kernels, and how long a batch takes."""

from datafree.runtimes._advice import advice
from datafree.runtimes._cpu import integer_instructions, processor
from datafree.runtimes._timing import available_threads
from datafree.runtimes.base import UNKNOWN, FloatLayer, Kernels, Latency, Runtime

__all__ = [
    "UNKNOWN",
    "FloatLayer",
    "Kernels",
    "Latency",
    "Runtime",
    "advice",
    "available_threads",
    "integer_instructions",
    "processor",
]
