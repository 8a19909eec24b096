"""What a source reports beside its frames."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias


class Event(StrEnum):
    """What happened."""

    SHED = "shed"
    """A frame of a live source was replaced by a newer one before it was taken."""
    FAILED = "failed"
    """A frame or file is broken, or is no image, and was left out."""
    REOPENED = "reopened"
    """A live source, or a folder, is back after an outage."""


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """An event of a source.

    Attributes:
        source: The source's name.
        event: What happened.
        detail: The reason in plain words; holds no credentials.
        path: The file, if it is about a file of a folder.
    """

    source: str
    event: Event
    detail: str = ""
    path: Path | None = None


Report: TypeAlias = Callable[[SourceEvent], None]
"""Receives the events, in the threads of the sources."""


def ignore(event: SourceEvent) -> None:
    """Drops an event."""
