"""Parts and shares."""

from hypothesis import given
from hypothesis import strategies as st

from gradcam_server.batch.plan import Part, Share, cut, merge


@given(count=st.integers(1, 10_000), size=st.integers(1, 3000))
def test_parts_cover_the_inputs_once(count: int, size: int) -> None:
    """Parts are in order, not empty, and not larger than the shard size."""
    parts = cut(count, size)
    assert merge(parts) == [(0, count)]
    assert all(0 < len(part) <= size for part in parts)
    assert len({part.name for part in parts}) == len(parts)
    assert sorted(part.name for part in parts) == [part.name for part in parts]


@given(parts=st.integers(1, 1000), shares=st.integers(1, 50))
def test_shares_cover_the_parts_once(parts: int, shares: int) -> None:
    """Each part is in one share, and shares differ by at most one part."""
    ranges = [Share(number, shares).range(parts) for number in range(shares)]
    assert [at for start, stop in ranges for at in range(start, stop)] == list(range(parts))
    sizes = {stop - start for start, stop in ranges}
    assert max(sizes) - min(sizes) <= 1


def test_names_tell_the_part_and_how_many_there_are() -> None:
    """Names have the usual form part-N-of-M."""
    assert cut(2500, 1000)[2].name == "part-00002-of-00003"
    assert Part(7, 123_456, 7, 8).name == "part-000007-of-123456"


def test_ranges_leave_out_what_is_finished() -> None:
    """Adjacent parts are one range."""
    first, _, third, fourth = cut(35, 10)
    assert merge([first, third, fourth]) == [(0, 10), (20, 35)]
