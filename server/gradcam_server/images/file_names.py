"""Which names are those of images: one rule for folders, patterns, lists, tar files and tables.

Only names are looked at. Whether a file is what its name says is found when it is decoded.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")

# What macOS puts beside the files of archives: resource forks ("._photo.jpg") in this folder.
_MACOS_FOLDER = "__MACOSX"
_HIDDEN, _NO_SUFFIX = "hidden", "without a suffix"
_MAX_KINDS = 8


def is_hidden(component: str) -> bool:
    """Returns whether a file or folder of this name is hidden, or macOS's own."""
    return component == _MACOS_FOLDER or (
        component.startswith(".") and component not in (".", "..")
    )


def reason_to_leave_out(name: str, *, is_listed: bool = False) -> str | None:
    """Says why a name is not that of an image to explain.

    Args:
        name: The path, with slashes, below the folder or archive where images are looked for.
        is_listed: Someone wrote down this very name, in a list or a table. Then its folders may
            be hidden, and it needs no suffix.

    Returns:
        None for an image. Else the kind that people are told: "hidden" (it or one of its folders
        begins with a dot, or it is in ``__MACOSX``), its suffix in lower case, or "without a
        suffix".
    """
    *folders, file = name.split("/")
    if is_hidden(file) or _MACOS_FOLDER in folders:
        return _HIDDEN
    if any(map(is_hidden, folders)) and not is_listed:
        return _HIDDEN
    suffix = PurePosixPath(file).suffix.lower()
    if suffix in SUFFIXES:
        return None
    # "notes 1.2 final" has none.
    if re.fullmatch(r"\.(?=.*[a-z])[a-z0-9_]{1,10}", suffix):
        return suffix
    return None if is_listed else _NO_SUFFIX


def images_among(
    names: Iterable[str], left_out: Counter[str], *, root: str = "", is_listed: bool = False
) -> Iterator[str]:
    """Yields the names of images; counts the others by their kind.

    Args:
        names: Paths, with slashes.
        left_out: Is added to.
        root: Begins all of the paths, and is not looked at.
        is_listed: As of ``reason_to_leave_out``.
    """
    for name in names:
        below = os.path.relpath(name, root) if root else name
        reason = reason_to_leave_out(below, is_listed=is_listed)
        if reason is None:
            yield name
        else:
            left_out[reason] += 1


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Says how many files were left out, such as "5 files left out: .heic 4, .tif 1"."""
    kinds = Counter(left_out).most_common()
    shown = [f"{kind} {count:,}" for kind, count in kinds[:_MAX_KINDS]]
    if others := sum(count for _, count in kinds[_MAX_KINDS:]):
        shown.append(f"others {others:,}")
    total = sum(left_out.values())
    return f"{total:,} {'file' if total == 1 else 'files'} left out: {', '.join(shown)}"
