"""Shows many results in a notebook or as a page, without widgets."""

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from gradcam_client.html_view import ResultView, to_html, to_page
from gradcam_client.image_urls import ImageUrl
from gradcam_client.results import ImageExplanation
from gradcam_client.stream import Failed, Outcome

_MAX_COUNT = 24


class Viewer:
    """Shows results and errors: the last value of a notebook's cell, or a page.

        Viewer(client.explain_stream(paths))
        Viewer(results).save("results.html")

    Args:
        results: Results of ``explain``, or outcomes of ``explain_stream``.
        max_count: The largest number that is taken and shown.
    """

    def __init__(
        self, results: Iterable[ImageExplanation | Outcome], *, max_count: int = _MAX_COUNT
    ) -> None:
        self._views = [_view(one) for one in islice(results, max_count)]
        failed = sum(bool(view.error) for view in self._views)
        self._title = f"{len(self._views)} images" + (f", {failed} failed" if failed else "")

    def _repr_html_(self) -> str:
        """Shows the results in a notebook."""
        return to_html(self._views, self._title)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a page that embeds its pictures.

        Raises:
            OSError: The file cannot be written.
        """
        Path(path).write_text(to_page(self._views, self._title), "utf-8")


def _view(one: ImageExplanation | Outcome) -> ResultView:
    if isinstance(one, ImageExplanation):
        return one.view()
    if not isinstance(one, Failed):
        return one.result.view()
    is_named = isinstance(one.source, str | os.PathLike | ImageUrl)
    return ResultView(str(one.source) if is_named else "an image", error=str(one.error))
