"""What every runtime must do, found by its file."""

from __future__ import annotations

import pytest

from datafree.registry import built_in, load
from datafree.runtimes import Runtime
from datafree.testing import RuntimeContract

PACKAGE = "datafree.runtimes"


class TestEveryRuntime(RuntimeContract):
    @pytest.fixture(autouse=True, params=built_in(PACKAGE))
    def _chosen(self, request: pytest.FixtureRequest) -> None:
        pytest.importorskip(request.param)
        self.method = load(PACKAGE, request.param, Runtime)()
