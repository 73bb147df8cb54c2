"""The command line: options in, tables out, exit codes."""
