"""Measures subjects in turns, so that noise of the machine affects all alike."""

import math
import random
import time
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
    within_s: float = math.inf,
) -> dict[str, list[T]]:
    """Measures each subject once in each round.

    Args:
        subjects: Functions that measure one subject each, by name.
        rounds: The number of rounds.
        seed: Seed of the random order.
        on_turn: Called with the name before each measurement.
        within_s: Seconds in which all rounds should end: no round begins that would end later if it
            took as long as the longest before it. The first always runs.

    Returns:
        The measurements by name, in the order of the rounds: the nth values are of one round.
    """
    found: dict[str, list[T]] = {name: [] for name in subjects}
    began = round_began = time.perf_counter()
    current, longest = 0, 0.0
    for number, name in turns(subjects, rounds, seed):
        if number != current:
            now = time.perf_counter()
            longest = max(longest, now - round_began)
            if now - began + longest > within_s:
                break
            current, round_began = number, now
        on_turn(name)
        found[name].append(subjects[name]())
    return found
