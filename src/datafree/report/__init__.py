"""One self-contained HTML page about a run: measured by `collect`, written by `render`."""

from datafree.report.collect import Report, collect
from datafree.report.page import render
from datafree.report.source import Cited, Source

__all__ = ["Cited", "Report", "Source", "collect", "render"]
