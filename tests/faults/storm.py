"""A storm of requests on a server, from patient, impatient and dying clients."""

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from faults.cases import Case, save
from faults.clients import BEGUN, Client, Tally

_THREADS = 8
_DYING_PROCESSES = 2
KILLED = "killed with its process"
_PROCESSES = "processes killed"


def storm(address: str, cases: Sequence[Case], requests: int, folder: Path) -> Counter[str]:
    """Sends about so many requests.

    Args:
        address: The server.
        cases: What to ask.
        requests: How many at least.
        folder: An empty one.

    Returns:
        How many there were (BEGUN), and what became of how many of them.
    """
    path = folder / "cases"
    save(cases, path)
    tally = Tally()

    def go_on() -> bool:
        return tally.begun < requests

    threads = [
        threading.Thread(target=Client(address, cases, seed, tally.tell).run, args=(go_on,))
        for seed in range(_THREADS)
    ]

    def keep_dying(seed: int) -> None:
        chance = random.Random(seed)
        while go_on():
            seed += _DYING_PROCESSES
            _live_and_die(address, path, seed, chance.uniform(0.2, 3), tally)

    threads += [
        threading.Thread(target=keep_dying, args=(1000 + number,))
        for number in range(_DYING_PROCESSES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally.counts


def _live_and_die(address: str, path: Path, seed: int, life_s: float, tally: Tally) -> None:
    """Runs a client process and kills it when it has asked for some seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "faults.clients", address, str(path), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    killer = threading.Timer(life_s, process.kill)
    in_work = 0
    for number, line in enumerate(process.stdout):
        if number == 0:
            killer.start()
        what = line.rstrip("\n")
        in_work += 1 if what == BEGUN else -1
        tally.tell(what)
    process.stdout.close()
    process.wait()
    tally.tell(_PROCESSES)
    for _ in range(in_work):
        tally.tell(KILLED)


def outcomes(counts: Counter[str]) -> int:
    """Returns how many requests have an outcome."""
    return counts.total() - counts[BEGUN] - counts[_PROCESSES]
