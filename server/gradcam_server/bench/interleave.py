"""Subjects take turns, so that the machine's moods meet them all alike."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


def turns(names: Iterable[str], rounds: int, seed: int = 0) -> Iterator[tuple[int, str]]:
    """Yields (round, name): each name once in each round, every round in another order.

    With one order for all rounds the same subject would always come after the same other one,
    and pay for the caches that this one leaves and the heat that it makes.
    """
    shuffled = list(names)
    chance = random.Random(seed)  # noqa: S311 - an order
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
        subjects: By name, what measures one of them.
        rounds: How often.
        seed: Of the order.
        on_turn: Told whose turn it is.

    Returns:
        By name the measurements, in the order of the rounds: the nth ones are neighbours.
    """
    found: dict[str, list[T]] = {name: [] for name in subjects}
    for _, name in turns(subjects, rounds, seed):
        on_turn(name)
        found[name].append(subjects[name]())
    return found
