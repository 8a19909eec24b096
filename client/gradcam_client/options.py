"""Spells out the options of ``explain``, in signatures, in help and in errors about their names."""

import difflib
import inspect
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

RENAMED = {
    "include_logits": "logits",
    "layer": "layers",
    "layer_fusion": "fusion",
    "pass_count": "passes",
    "prediction_count": "predictions",
    "score_type": "score",
    "smooth_grad": "smooth",
}
"""Old names of options, and the names of today."""

# The other arguments of the methods that take options, for errors.
_OF_CALLS = ("timeout_s", "request_id", "hedge_after_s", "max_in_flight", "on_progress")
_PLACE = re.compile(r"^( *)\*\*options: .*\n", re.MULTILINE)
_PACKAGE = __name__.partition(".")[0]

_F = TypeVar("_F", bound=Callable[..., Any])


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the word that is most similar, or an empty text."""
    similar = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def current_names(options: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Returns the options by their names of today; an old name is taken with a warning.

    Args:
        options: The options as they were given.
        known: The names of today.

    Raises:
        TypeError: There is no such option, or an option is given by both names.
    """
    known = list(known)
    renamed: dict[str, Any] = {}
    for given, value in options.items():
        name = RENAMED.get(given, given)
        if name not in known:
            others = [other for other in _OF_CALLS if other != given]
            similar = did_you_mean(given, known + others) or f"; the options are {', '.join(known)}"
            raise TypeError(f"there is no option {given!r}{similar}")
        if name in renamed or (name != given and name in options):
            raise TypeError(f"the option {name!r} is given twice: {given!r} is its old name")
        if name != given:
            text = f"the option {given!r} is now {name!r}; the old name will be removed"
            warnings.warn(text, DeprecationWarning, stacklevel=_level_of_the_caller())
        renamed[name] = value
    return renamed


def _level_of_the_caller() -> int:
    """Returns the ``stacklevel`` of the first frame outside of this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level


def spelled_out(template: Callable[..., Any]) -> Callable[[_F], _F]:
    """Shows the arguments of a function in place of the ``**options`` of another function.

    ``help`` and editors that look at objects then show every option with its type, default and
    description. (Type checkers read ``Unpack[ExplainOptions]``.)

    Args:
        template: The function with the keyword arguments, and their descriptions under "Args:".
    """
    shown = inspect.signature(template).parameters.values()
    described = _arguments(inspect.getdoc(template) or "")

    def spell_out(function: _F) -> _F:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        spelled: Any = function
        spelled.__signature__ = signature.replace(parameters=[*own, *shown])
        if function.__doc__:  # python -OO has none
            function.__doc__ = _PLACE.sub(
                lambda place: textwrap.indent(described, place[1]), function.__doc__
            )
        return function

    return spell_out


def _arguments(documentation: str) -> str:
    """Returns the lines under "Args:", without their indentation."""
    _, _, after = documentation.partition("Args:\n")
    return textwrap.dedent(after.partition("\n\n")[0]) + "\n"
