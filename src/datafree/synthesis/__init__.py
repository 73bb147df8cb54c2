"""Image synthesis: one method, one file; the file's stem is the method's name."""
