"""Many runs from one file: networks times methods times bits times seeds, on one machine or many.

A cell is one ordinary run in a folder of its own; nothing is computed that no run computes.
"""
