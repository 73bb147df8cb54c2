"""What every export format must do, found by its file."""

from __future__ import annotations

import pytest

from datafree.export.base import Exporter
from datafree.registry import built_in, load
from datafree.testing import ExportContract

pytestmark = pytest.mark.integration

PACKAGE = "datafree.export"


class TestEveryFormat(ExportContract):
    @pytest.fixture(autouse=True, params=built_in(PACKAGE))
    def _chosen(self, request: pytest.FixtureRequest) -> None:
        self.method = load(PACKAGE, request.param, Exporter)()
