from __future__ import annotations

import pytest

from datafree import errors
from datafree.errors import ConfigError, DatafreeError, UnknownNameError


def test_all_errors_have_one_base() -> None:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    classes = [c for c in found if not issubclass(c, Warning)]
    assert len(classes) >= 8
    assert all(issubclass(c, DatafreeError) for c in classes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zeroqq", "unknown method 'zeroqq': did you mean zeroq?"),
        ("ZeroQ", "unknown method 'ZeroQ': did you mean zeroq?"),
        ("xyz", "unknown method 'xyz': choose from dsg, noise, zeroq"),
    ],
)
def test_unknown_name_offers_what_is_near(name: str, message: str) -> None:
    error = UnknownNameError("method", name, ["zeroq", "noise", "dsg"])
    assert isinstance(error, ConfigError)
    assert str(error) == message
