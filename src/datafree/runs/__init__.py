"""One run: its plan, its stages, its folder, and what is read from a finished one."""
