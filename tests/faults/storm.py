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
    """Sends requests from threads and from processes that are killed.

    Args:
        address: The server.
        cases: The cases to send.
        requests: The minimum number of requests.
        folder: An empty folder.

    Returns:
        The number of requests (BEGUN) and of each outcome.
    """
    path = folder / "cases"
    save(cases, path)
    tally = Tally()

    def go_on() -> bool:
        return tally.begun < requests

    threads = [
        threading.Thread(target=Client(address, cases, seed, tally.report).run, args=(go_on,))
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
    """Runs a client process and kills it after some seconds of requests."""
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
        outcome = line.rstrip("\n")
        in_work += 1 if outcome == BEGUN else -1
        tally.report(outcome)
    process.stdout.close()
    process.wait()
    tally.report(_PROCESSES)
    for _ in range(in_work):
        tally.report(KILLED)


def outcomes(counts: Counter[str]) -> int:
    """Returns the number of requests that have an outcome."""
    return counts.total() - counts[BEGUN] - counts[_PROCESSES]
