"""Activation ranges from images: one calibrator, one file; the file's stem is its name."""
