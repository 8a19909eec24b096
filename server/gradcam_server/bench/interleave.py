"""Measures subjects in turns, so that noise of the machine affects all alike."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


def turns(names: Iterable[str], rounds: int, seed: int = 0) -> Iterator[tuple[int, str]]:
    """Yields (round, name): each name once in each round, in a random order.

    In a fixed order a subject would always follow the same other subject, and always suffer from
    the caches and the heat that it leaves.
    """
    shuffled = list(names)
    chance = random.Random(seed)  # noqa: S311 - not for security
    for number in range(rounds):
        chance.shuffle(shuffled)
        for name in shuffled:
            yield number, name


def interleave(
    subjects: Mapping[str, Callable[[], T]],
    rounds: int,
    seed: int = 0,
    on_turn: Callable[[str], object] = lambda _: None,
) -> dict[str, list[T]]:
    """Measures each subject once in each round.

    Args:
        subjects: Functions that measure one subject each, by name.
        rounds: The number of rounds.
        seed: Seed of the random order.
        on_turn: Called with the name before each measurement.

    Returns:
        The measurements by name, in the order of the rounds: the nth values are of one round.
    """
    found: dict[str, list[T]] = {name: [] for name in subjects}
    for _, name in turns(subjects, rounds, seed):
        on_turn(name)
        found[name].append(subjects[name]())
    return found
