"""Integer models for runtimes: one target, one file."""
