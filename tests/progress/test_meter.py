from __future__ import annotations

from datafree.progress.meter import Meter


def test_steps_pass_as_they_come() -> None:
    told: list[int] = []
    meter = Meter(told.append, 6)
    for done in (1, 2, 3):
        meter(done)
    assert told == [1, 2, 3]


def test_what_is_begun_again_shares_the_rest() -> None:
    """Four of ten units are told when twelve steps are found to be still to come."""
    told: list[int] = []
    meter = Meter(told.append, 10)
    meter(4)
    meter.expect(12)
    for _ in range(12):
        meter(1)
    assert sum(told) == 10
    assert max(told[1:]) == 1


def test_more_steps_than_expected_tell_no_more_units() -> None:
    told: list[int] = []
    meter = Meter(told.append, 3)
    meter(5)
    assert told == [3]
