"""Rows and columns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradcam_server.batch.schema import SCHEMA, error_row, from_columns, pack, to_batch, unpack
from gradcam_server.batch.sources.base import Item
from support.made_rows import Numbers, made_row

ITEM = next(Numbers(1).read(0, 1))
MAPS = hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 2.0**100, width=32))


@given(values=MAPS)
@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 2**-10), ("uint8", 0.51 / 255)])
def test_a_map_is_kept_to_its_types_rounding(
    values: np.ndarray, kind: str, tolerance: float
) -> None:
    """The error is bounded relative to the map's maximum, however large or small."""
    data, scale = pack(values, kind)
    row = {
        "heatmap": data,
        "heatmap_dtype": kind,
        "heatmap_height": 3,
        "heatmap_width": 4,
        "heatmap_scale": scale,
    }
    top = float(values.max())
    np.testing.assert_allclose(unpack(row), values, rtol=0, atol=max(top * tolerance, 1e-37))


def test_ordinary_maps_need_no_scale() -> None:
    """Stored as float16, their values are the map itself."""
    data, scale = pack(np.array([0, 0.25, 4], np.float32), "float16")
    assert scale == 1
    assert np.frombuffer(data, "<f2").tolist() == [0, 0.25, 4]


def test_rows_survive_the_columns() -> None:
    """Rows of another process are unchanged by the conversion to columns."""
    rows = [made_row(ITEM, overlay_jpeg=b"jpeg"), error_row(ITEM, "broken")]
    assert from_columns(to_batch(rows, overlays=True)) == rows
    assert to_batch(rows).schema == SCHEMA


def test_a_failed_row_has_nothing_but_its_name_and_error() -> None:
    """All other columns are null, not zero."""
    (row,) = to_batch([error_row(Item(3, "a", "/a", bytes), "broken")]).to_pylist()
    filled = {name: value for name, value in row.items() if value is not None}
    assert filled == {"index": 3, "id": "a", "path": "/a", "status": "error", "error": "broken"}
