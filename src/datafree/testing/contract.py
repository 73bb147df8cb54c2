"""What the contracts of all kinds share."""

from __future__ import annotations

import pytest

from datafree.config import Frozen, build
from datafree.config.fields import described
from datafree.config.parsing import reference
from datafree.errors import ConfigError
from datafree.registry import load


class Contract:
    """A method is a frozen set of hyper-parameters that can be named, built and explained."""

    package: str
    """Dotted name of the package, and of the group of entry points, that methods belong to."""
    base: type[Frozen]
    """What every method of the package derives from."""

    def chosen(self) -> Frozen:
        """The method under test."""
        raise NotImplementedError

    def test_it_is_found_again_under_its_name(self) -> None:
        """A run keeps a name; the class must be importable from where it is."""
        cls = type(self.chosen())
        assert load(self.package, reference(cls), self.base) is cls

    def test_unknown_hyper_parameters_are_refused(self) -> None:
        """A misspelt name is told, not ignored."""
        with pytest.raises(ConfigError, match="no_such_option is not known"):
            build(type(self.chosen()), {"no_such_option": 3}, "option")

    def test_it_can_be_written_to_a_file_and_read_back(self) -> None:
        """As JSON values, which `config.yaml` holds."""
        method = self.chosen()
        assert build(type(method), method.model_dump(mode="json"), "option") == method

    def test_hyper_parameters_are_explained_and_have_defaults(self) -> None:
        """`datafree methods` shows them: a string under each field says what it means."""
        cls = type(self.chosen())
        assert (cls.__doc__ or "").strip(), "a docstring says what the method does"
        for field in described(cls).values():
            assert field.meaning, f"{field.name} has no string under it"
            assert not cls.model_fields[field.name].is_required(), f"{field.name} has no default"
