"""Uniform quantization: integer grids and the modules that simulate them."""
