"""Fair shares among callers, by arithmetic alone."""

import random

import pytest

from gradcam_server.domain.fair_shares import FairShares


def serve(costs: dict[str, float], rounds: int) -> dict[str, float]:
    """Lets callers that always have work use a resource; returns the seconds that each has used."""
    shares, used = FairShares(), dict.fromkeys(costs, 0.0)
    for caller in costs:
        shares.enter(caller)
    for _ in range(rounds):
        caller = min(costs, key=shares.used_s)
        charge = shares.begin(caller, 1.0)
        shares.enter(caller)  # its next work waits already
        charge.settle(costs[caller])
        used[caller] += costs[caller]
    return used


@pytest.mark.parametrize(
    "costs", [{"large": 5.0, "small": 0.1}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.3, "b": 7.0}]
)
def test_callers_that_always_ask_use_equally_much(costs: dict[str, float]) -> None:
    """The shares are of seconds, as measured, however long one piece of work takes."""
    used = serve(costs, 2000)
    assert max(used.values()) - min(used.values()) <= 2 * max(costs.values())


def test_idle_time_earns_nothing() -> None:
    """A caller that comes back starts level with the others, not with its old usage."""
    shares = FairShares()
    for caller in ("always", "sometimes"):
        shares.enter(caller)
    shares.begin("sometimes", 1.0).settle(1.0)
    for _ in range(100):
        shares.enter("always")
        shares.begin("always", 1.0).settle(1.0)
    assert shares.used_s("always") == 100
    shares.enter("sometimes")
    assert shares.used_s("sometimes") == 100


def test_usage_is_not_forgotten_by_going_away() -> None:
    """The usage of a caller that leaves and comes back while others wait still counts."""
    shares = FairShares()
    for caller in ("greedy", "patient"):
        shares.enter(caller)
    shares.begin("greedy", 1.0).settle(50.0)
    shares.enter("greedy")
    assert shares.used_s("greedy") > shares.used_s("patient")


def test_work_that_runs_counts_before_it_ends() -> None:
    """Long work is charged while it runs, and once it has ended only what was measured."""
    shares = FairShares()
    shares.enter("one")
    shares.enter("one")
    charge = shares.begin("one", 0.5)
    charge.raise_to(0.2)
    assert shares.used_s("one") == 0.5
    charge.raise_to(3.0)
    assert shares.used_s("one") == 3.0
    charge.settle(2.0)
    assert shares.used_s("one") == pytest.approx(2.0)


def test_dropped_work_costs_nothing() -> None:
    """A caller that cancels waiting work has the same usage as before."""
    shares = FairShares()
    for _ in range(1000):
        shares.enter("one")
    for _ in range(999):
        shares.leave("one")
    assert shares.used_s("one") == 0


def test_callers_that_have_gone_are_forgotten() -> None:
    """Thousands of connections, one after the other beside one that stays, leave no trace."""
    shares = FairShares()
    shares.enter("stays")
    for number in range(5000):
        shares.enter(f"connection {number}")
        shares.begin(f"connection {number}", 0.1).settle(0.1)
        shares.enter("stays")
        shares.begin("stays", 0.1).settle(0.1)
    assert shares.account_count < 50


def test_tags_interleave_callers_and_keep_each_ones_order() -> None:
    """Beside a thousand items of one caller the only item of another is among the first two."""
    shares = FairShares()
    waiting = [("many", 1.0)] * 1000 + [("one", 1.0)]
    for caller, _ in waiting:
        shares.enter(caller)
    tags = shares.start_tags(waiting)
    assert sorted(tags[:1000]) == tags[:1000]
    assert sum(tag <= tags[1000] for tag in tags) == 2


def test_any_sequence_keeps_its_books() -> None:
    """After any sequence of calls only callers with work are counted."""
    chance, shares = random.Random(0), FairShares()
    waiting: list[str] = []
    running = []
    for _ in range(5000):
        match chance.randrange(4):
            case 0:
                waiting.append(f"caller {chance.randrange(9)}")
                shares.enter(waiting[-1])
            case 1 if waiting:
                shares.leave(waiting.pop(chance.randrange(len(waiting))))
            case 2 if waiting:
                caller = waiting.pop(chance.randrange(len(waiting)))
                running.append((caller, shares.begin(caller, 1.0)))
            case 3 if running:
                running.pop()[1].settle(chance.random())
        assert shares.caller_count == len({*waiting, *(caller for caller, _ in running)})
