"""Class names: from an index to the name, and from a name in a request to the index."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from gradcam_server.errors import InvalidRequestError

_MAX_LISTED = 10  # classes, in an error
_MAX_SHOWN = 80  # characters of a name, in an error


@dataclass(frozen=True)
class ClassLabel:
    """The name of a class, and other names that a request may use for it."""

    name: str
    aliases: tuple[str, ...] = ()


class ClassLabels:
    """The classes of a model, in the order of its output."""

    def __init__(self, labels: Sequence[ClassLabel]) -> None:
        self.labels = tuple(labels)
        self._by_exact_name: dict[str, list[int]] = {}
        self._by_name: dict[str, list[int]] = {}
        self._by_alias: dict[str, list[int]] = {}
        for index, label in enumerate(self.labels):
            if not label.name:
                continue  # such a class is chosen by its index
            self._by_exact_name.setdefault(label.name, []).append(index)
            self._by_name.setdefault(_folded(label.name), []).append(index)
            for alias in label.aliases:
                self._by_alias.setdefault(_folded(alias), []).append(index)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Returns the name of a class."""
        return self.labels[index].name

    def index(self, target: int | str) -> int:
        """Finds a class by index or name.

        Args:
            target: An index, a name, a synonym or a WordNet id, without regard to
                case; underscores count as spaces. An exact name takes precedence (ImageNet
                has a Cardigan, a dog, and a cardigan), and any name over a synonym.

        Returns:
            The index of the class.

        Raises:
            InvalidRequestError: There is no such class, or several classes have the name.
        """
        if isinstance(target, int):
            if not 0 <= target < len(self.labels):
                raise InvalidRequestError(
                    "targets",
                    f"class index {target} is out of range: the model has {len(self.labels)} "
                    f"classes, 0 to {len(self.labels) - 1}",
                )
            return target
        wanted = _folded(target)
        found = (
            self._by_exact_name.get(target)
            or self._by_name.get(wanted)
            or self._by_alias.get(wanted)
            or []
        )
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidRequestError(
                "targets",
                f"class name {target!r} fits several classes: {self._listed(found)}; use an index",
            )
        shown = target if len(target) <= _MAX_SHOWN else f"{target[:_MAX_SHOWN]}..."
        raise InvalidRequestError("targets", f"unknown class {shown!r}{self._suggestions(wanted)}")

    def _suggestions(self, wanted: str) -> str:
        if len(self.labels) <= _MAX_LISTED:
            return f"; the model has {self._listed(range(len(self.labels)))}"
        known = {**self._by_alias, **self._by_name}
        close = difflib.get_close_matches(wanted[:_MAX_SHOWN], known, n=3, cutoff=0.7)
        indices = sorted({index for name in close for index in known[name]})
        return f"; did you mean {self._listed(indices)}?" if indices else ""

    def _listed(self, indices: Sequence[int]) -> str:
        listed = []
        for index in indices[:_MAX_LISTED]:
            name = self.name(index)[:_MAX_SHOWN]
            listed.append(f"{index} ({name})" if name else str(index))
        more = len(indices) - len(listed)
        return ", ".join(listed) + (f" and {more} more" if more else "")


@cache
def imagenet_labels() -> ClassLabels:
    """Returns the 1000 classes of ILSVRC 2012 in the order that Keras' models use.

    The name of a class is its first WordNet lemma; the other lemmas and its WordNet id are aliases.
    """
    table = files("gradcam_server").joinpath("data/imagenet_classes.tsv").read_text("utf-8")
    labels = []
    for row in table.splitlines():
        wordnet_id, lemmas = row.split("\t")
        name, *synonyms = lemmas.split(", ")
        labels.append(ClassLabel(name, (*synonyms, wordnet_id)))
    return ClassLabels(labels)


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
