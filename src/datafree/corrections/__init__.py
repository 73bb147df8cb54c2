"""Weights and biases changed so that quantization loses less: one file per correction."""
