"""Tells image files by name: one rule for folders, patterns, lists, tar files and tables.

The content of a file is checked when it is decoded.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")

# The folder where macOS archives keep resource forks ("._photo.jpg").
_MACOS_FOLDER = "__MACOSX"
_HIDDEN, _NO_SUFFIX = "hidden", "without a suffix"
_MAX_KINDS = 8


def is_hidden(component: str) -> bool:
    """Returns whether a file or folder of this name is hidden, or made by macOS archives."""
    return component == _MACOS_FOLDER or (
        component.startswith(".") and component not in (".", "..")
    )


def reason_to_leave_out(name: str, *, is_listed: bool = False) -> str | None:
    """Returns why a file is not taken for an image to explain.

    Args:
        name: The path, with slashes, below the folder or archive that is searched.
        is_listed: Whether the name is written in a list or a table. Then its folders may be
            hidden, and it needs no suffix.

    Returns:
        None for an image. Otherwise the reason: "hidden" (the name of the file or of one of its
        folders begins with a dot, or it is in ``__MACOSX``), its suffix in lower case, or
        "without a suffix".
    """
    *folders, file = name.split("/")
    if is_hidden(file) or _MACOS_FOLDER in folders:
        return _HIDDEN
    if any(map(is_hidden, folders)) and not is_listed:
        return _HIDDEN
    suffix = PurePosixPath(file).suffix.lower()
    if suffix in SUFFIXES:
        return None
    # "notes 1.2 final" has no suffix.
    if re.fullmatch(r"\.(?=.*[a-z])[a-z0-9_]{1,10}", suffix):
        return suffix
    return None if is_listed else _NO_SUFFIX


def images_among(
    names: Iterable[str], left_out: Counter[str], *, root: str = "", is_listed: bool = False
) -> Iterator[str]:
    """Yields the names of images; counts the other names by their reason.

    Args:
        names: Paths, with slashes.
        left_out: Counts the names that are left out, by reason.
        root: The folder that begins all paths; its own name is not checked.
        is_listed: As in ``reason_to_leave_out``.
    """
    for name in names:
        below = os.path.relpath(name, root) if root else name
        reason = reason_to_leave_out(below, is_listed=is_listed)
        if reason is None:
            yield name
        else:
            left_out[reason] += 1


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Describes the files that were left out, such as "5 files left out: .heic 4, .tif 1"."""
    kinds = Counter(left_out).most_common()
    shown = [f"{kind} {count:,}" for kind, count in kinds[:_MAX_KINDS]]
    if others := sum(count for _, count in kinds[_MAX_KINDS:]):
        shown.append(f"others {others:,}")
    total = sum(left_out.values())
    return f"{total:,} {'file' if total == 1 else 'files'} left out: {', '.join(shown)}"
