"""The canonical graph: capture, taps, folding of batch norm, insertion of quantizers."""
