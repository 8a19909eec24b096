"""Forms: multipart/form-data with a file and options, read from a body in memory."""

from collections.abc import Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gradcam_server.errors import InvalidRequestError

IMAGE = "image"
_MAX_PARTS = 64


def read_form(content_type: str, body: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    """Reads a form.

    Args:
        content_type: The header, which holds the boundary of the parts.
        body: The body.

    Returns:
        The content of the part ``image``, and the other parts as names and texts.

    Raises:
        InvalidRequestError: It is no such form, or has no image.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequestError(
            "Content-Type", "the form has no boundary: let the client's library write the header"
        )
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequestError(IMAGE, f"the body is not a form: {error}") from None
    if not form.is_complete:
        raise InvalidRequestError(IMAGE, "the form ends within a part: send all of it")
    if form.image is None:
        raise InvalidRequestError(IMAGE, "the form has no image: name the part of the file image")
    return form.image, form.options


class _Form:
    """Collects the parts of a form.

    Attributes:
        image: The content of the image.
        options: Names and texts of the other parts.
        is_complete: Whether the last boundary was found.
    """

    def __init__(self) -> None:
        self.image: bytes | None = None
        self.options: list[tuple[str, str]] = []
        self.is_complete = False
        self._parts = 0
        self._field = self._value = self._disposition = b""
        self._content: list[bytes] = []

    def callbacks(self) -> Any:
        """Returns the callbacks of the parser."""
        named: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_end": self._finish,
        }
        return named

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise InvalidRequestError(IMAGE, f"the form has more than {_MAX_PARTS} parts")
        self._disposition, self._content = b"", []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end(self) -> None:
        name = parse_options_header(self._disposition.decode("latin-1"))[1].get(b"name", b"")
        content = self._content[0] if len(self._content) == 1 else b"".join(self._content)
        if name == IMAGE.encode():
            if self.image is not None:
                raise InvalidRequestError(IMAGE, "the form has two images; send one")
            self.image = content
            return
        try:
            self.options.append((name.decode(), content.decode()))
        except UnicodeDecodeError:
            raise InvalidRequestError(
                name.decode("ascii", "replace"), "an option of the form is not a text in UTF-8"
            ) from None

    def _finish(self) -> None:
        self.is_complete = True
