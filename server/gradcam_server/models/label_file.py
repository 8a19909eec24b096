"""Class names from files."""

import json
from pathlib import Path

from gradcam_server.domain.labels import ClassLabel, ClassLabels, imagenet_labels
from gradcam_server.errors import StartupError


def read_labels(path: Path | None, *class_counts: int) -> ClassLabels | None:
    """Reads the names of a model's classes, in the order of its outputs.

    Args:
        path: A text file with a name on each line, or a .json file with a list of names.
            An empty line, "" or null is a class without a name, which goes by its index;
            empty lines at the end beyond the number of classes are ignored. ``imagenet``
            names ImageNet's 1000 classes. None gives None.
        *class_counts: The possible numbers of names, ascending: the number of the model's classes,
            or for a model with one output, 1 (the positive class) or 2 (the negative class first).

    Raises:
        StartupError: The file cannot be read, or has another number of names.
    """
    if path is None:
        return None
    if str(path) == "imagenet":
        labels = imagenet_labels()
    else:
        labels = ClassLabels([ClassLabel(name) for name in _read(path, class_counts[0])])
    if len(labels) not in class_counts:
        known = f"{class_counts[0]}"
        if len(class_counts) > 1:
            known = "one output: name the positive class, or the negative and the positive class"
        raise StartupError(
            f"--labels {path}: it names {len(labels)} classes, and the model has {known}"
        )
    return labels


def no_labels(class_count: int) -> ClassLabels:
    """Returns classes without names."""
    return ClassLabels([ClassLabel("")] * class_count)


def _read(path: Path, class_count: int) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"--labels {path}: it cannot be read as UTF-8 text ({error})") from error
    if path.suffix == ".json":
        return _names_from_json(path, text)
    names = [line.strip() for line in text.removesuffix("\n").split("\n")]
    while len(names) > class_count and not names[-1]:
        names.pop()
    return names


def _names_from_json(path: Path, text: str) -> list[str]:
    try:
        names = json.loads(text)
    except ValueError as error:
        raise StartupError(f"--labels {path}: it is not JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str | None) for name in names):
        raise StartupError(f"--labels {path}: it must be a JSON list of names")
    return [(name or "").strip() for name in names]
