from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datafree.synthesis.base import even_batches


@given(count=st.integers(1, 2000), most=st.integers(1, 300))
def test_even_batches_are_few_and_about_equal(count: int, most: int) -> None:
    size = even_batches(count, most)
    sizes = [min(size, count - start) for start in range(0, count, size)]
    assert sum(sizes) == count
    assert max(sizes) <= most
    fewest = next(n for n in range(1, count + 1) if n * most >= count)
    assert len(sizes) <= fewest
    assert size < count / fewest + 1, "no larger than an equal share, rounded up"
