"""Measurements of datafree: tables in YAML, records in JSON lines, pages in `docs/results`."""
