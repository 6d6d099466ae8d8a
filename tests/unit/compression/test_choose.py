"""Test the choice of shapes against all choices."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.compression.choose import GRID, Option, choose_options

OPTIONS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 100)), min_size=1, max_size=5, unique_by=lambda option: option[0]
)


@given(parts=st.lists(OPTIONS, min_size=1, max_size=4), limit=st.sampled_from([1, 5, 20, 50, 100]))
@settings(deadline=None, max_examples=150)
def test_the_choice_is_the_best_of_all(parts, limit):
    # with a limit that divides GRID, whole times are whole steps, so nothing is rounded
    assert GRID % limit == 0
    options = [[Option(number, *values) for number, values in enumerate(part)] for part in parts]
    allowed = [choice for choice in product(*options) if sum(option.cost for option in choice) <= limit]
    found = choose_options(options, limit)
    if not allowed:
        assert found is None
        return
    chosen = [part[number] for part, number in zip(options, found, strict=True)]
    assert sum(option.cost for option in chosen) <= limit
    assert sum(option.error for option in chosen) == min(sum(option.error for option in choice) for choice in allowed)


@given(times=st.lists(st.floats(0.001, 3), min_size=3, max_size=6), limit=st.floats(0.5, 5))
@settings(deadline=None, max_examples=100)
def test_the_time_is_never_exceeded(times, limit):
    options = [[Option(0, 0.0, 10.0), Option(1, time, 1.0)] for time in times]
    found = choose_options(options, limit)
    assert sum(time for time, size in zip(times, found, strict=True) if size) <= limit * (1 + 1e-9)


def test_nothing_fits_no_time():
    assert choose_options([[Option(0, 0.0, 1.0)]], 0.0) == [0]
    assert choose_options([[Option(3, 0.1, 1.0)]], 0.0) is None
    assert choose_options([[Option(0, 0.0, 1.0)]], -1.0) is None
