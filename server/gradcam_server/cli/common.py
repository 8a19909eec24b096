"""What commands share: classes, probabilities, extras, and errors for scripts."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import click
import numpy as np
from numpy.typing import NDArray

from gradcam_client import GradCamError, ImageExplanation, ImageUrl
from gradcam_client.requests import MANY_PASS_METHODS, METHODS
from gradcam_server.cli.errors import readable

ONE_PASS_METHODS = tuple(name for name in METHODS if name not in MANY_PASS_METHODS)
ALL_CLASSES = 2**31 - 1  # more than any model has

ImageSource: TypeAlias = Path | ImageUrl
_LINK = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class ImageSourceType(click.ParamType[Any]):
    """The path of an image, or an http(s) link to it. A file of such a name comes first."""

    name = "image"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> ImageSource:
        if not isinstance(value, str) or not _LINK.match(value) or Path(value).exists():
            return Path(value)
        try:
            return ImageUrl(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def file_name(image: ImageSource) -> Path:
    """Returns the path, or the last name in the path of a link, from which outputs are named."""
    if isinstance(image, Path):
        return image
    link = urlsplit(image.url)
    return Path(Path(unquote(link.path)).name or link.hostname or "image")


def error_as_json(error: Exception | None) -> dict[str, str]:
    """Returns an error for scripts: its gRPC code or type, and its text."""
    code = error.code.name if isinstance(error, GradCamError) else type(error).__name__
    return {"code": code, "message": readable(str(error))}


def class_of(text: str) -> int | str:
    """Returns the class that a user typed: an index, or a name or WordNet id."""
    return int(text) if text.isdecimal() else text


def probabilities_of(answer: ImageExplanation) -> NDArray[np.float64]:
    """Returns the probabilities of all classes, shape (classes,).

    They are the server's: logits do not say whether a softmax made the probabilities.

    Args:
        answer: The answer to a request with a ``prediction_count`` of ``ALL_CLASSES``.
    """
    probabilities = np.empty(len(answer.predictions))
    for prediction in answer.predictions:
        probabilities[prediction.index] = prediction.probability
    return probabilities


def needs(package: str, extra: str) -> None:
    """Raises an error that says what to install, if a package is missing.

    Args:
        package: The package as it is imported.
        extra: The extra of this project that brings it.

    Raises:
        click.ClickException: It is not installed.
    """
    if find_spec(package) is None:
        raise click.ClickException(f"this needs {package}: pip install 'gradcam-server[{extra}]'")
