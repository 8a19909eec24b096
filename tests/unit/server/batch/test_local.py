"""The local stage, with an engine that answers at once."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.local import LocalStage
from gradcam_server.batch.schema import unpack
from gradcam_server.batch.sources.base import Item
from gradcam_server.batch.sources.files import FileSource
from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import InvalidRequestError, NotFoundError
from support.instant import InstantBackend

CONFIG = ServeConfig(batch_sizes=(1, 4), max_targets=1)


@pytest.fixture
def photos(tmp_path: Path, cat_jpeg: bytes) -> FileSource:
    """Thirty images, two of which cannot be read."""
    for number in range(30):
        (tmp_path / f"{number:02d}.jpg").write_bytes(cat_jpeg)
    (tmp_path / "07.jpg").write_bytes(cat_jpeg[:4000])
    (tmp_path / "11.jpg").unlink()
    return FileSource("made", [f"{number:02d}.jpg" for number in range(30)], root=str(tmp_path))


PLAIN = ExplainOptions()


def stage(options: ExplainOptions = PLAIN) -> LocalStage:
    return LocalStage(CONFIG, options, InstantBackend())


def test_rows_come_in_order_and_failures_are_among_them(photos: FileSource) -> None:
    """Each image has a row; images that fail do not delay the others."""
    with stage() as local:
        rows = list(local.rows(photos, [(0, 10), (11, 30)]))
    assert [row.index for row in rows] == [*range(10), *range(11, 30)]
    errors = {row.id: row.error for row in rows if row.status == "error"}
    assert errors.keys() == {"07.jpg", "11.jpg"}
    assert "truncated" in str(errors["07.jpg"])
    assert errors["11.jpg"] == "No such file or directory"
    fine = rows[0]
    assert (fine.width, fine.height, fine.model) == (451, 300, "instant")
    assert len(fine.class_index or ()) == 5
    made = {name: getattr(fine, name) for name in fine.__slots__}
    assert unpack(made).shape == (7, 7)


def test_no_more_is_read_than_is_soon_needed(photos: FileSource) -> None:
    """Memory is bounded, however long the list is."""
    taken = 0

    def endless() -> Iterator[Item]:
        nonlocal taken
        while True:
            taken += 1
            yield replace(next(photos.read(0, 1)), index=taken - 1)

    with stage() as local:
        rows = local.explain(endless())
        for _ in range(20):
            next(rows)
        # Two chunks for each thread that decodes, and the current chunk.
        assert taken <= 20 + 2 * 8 * max(4, os.cpu_count() or 1) + 8
        rows.close()  # type: ignore[attr-defined]


def test_what_the_list_fails_with_is_raised(photos: FileSource) -> None:
    """An error of the source is raised, not made a row, and nothing hangs."""

    def broken() -> Iterator[Item]:
        yield from photos.read(0, 3)
        raise OSError("the disk is gone")

    with stage() as local, pytest.raises(OSError, match="disk is gone"):
        list(local.explain(broken()))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (ExplainOptions(layer="typo"), NotFoundError),
        (ExplainOptions(target="no such class"), InvalidRequestError),
        (ExplainOptions(target=1000), InvalidRequestError),
    ],
)
def test_a_wrong_question_is_found_before_any_image(
    options: ExplainOptions, error: type[Exception]
) -> None:
    """Wrong options raise an error; they do not give a folder of error rows."""
    with pytest.raises(error):
        stage(options)


def test_overlays_are_asked_for_only_if_wanted(photos: FileSource) -> None:
    """Overlays are the JPEGs of the server's renderer."""
    with stage(ExplainOptions(overlays=True)) as local:
        (row,) = local.rows(photos, [(0, 1)])
    assert row.overlay_jpeg is not None
    assert row.overlay_jpeg.startswith(b"\xff\xd8")
