"""Fair shares of a resource among callers: whose work goes next. Pure, without a clock.

Usage is counted in seconds of the resource (a thread or a device). Of the callers whose work waits,
the caller with the least usage goes first (start-time fair queueing), so the share of a caller does
not depend on how much it asks for. A caller that was idle starts level with the active caller that
has used the least: idle time earns nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Account:
    """The usage of one caller.

    Attributes:
        settled_s: Measured usage of work that has ended, in seconds.
        running_s: Charged usage of work that runs, in seconds.
        work_count: Work that waits or runs.
    """

    settled_s: float
    running_s: float = 0.0
    work_count: int = 0


class Charge:
    """The usage of work that runs. ``FairShares.begin`` makes it."""

    def __init__(self, shares: "FairShares", caller: str, charged_s: float) -> None:
        self._shares, self._caller, self._charged_s = shares, caller, charged_s

    def raise_to(self, seconds: float) -> None:
        """Charges work that already runs longer than expected the seconds so far."""
        if seconds > self._charged_s:
            self._shares._charge(self._caller, seconds - self._charged_s)
            self._charged_s = seconds

    def settle(self, seconds: float) -> None:
        """Replaces the charged seconds by the measured seconds; the work has ended."""
        self._shares._settle(self._caller, self._charged_s, seconds)


class FairShares:
    """The usage of each caller that has work, or recently had more than its share.

    All usage is forgotten when no caller has work, so the memory is bounded by the callers of one
    busy period.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._active: set[str] = set()

    @property
    def caller_count(self) -> int:
        """Callers whose work waits or runs."""
        return len(self._active)

    @property
    def account_count(self) -> int:
        """Callers whose usage is remembered."""
        return len(self._accounts)

    def enter(self, caller: str) -> None:
        """Counts work that starts to wait."""
        if caller not in self._active:
            level_s = self._level_s()
            if not self._active:
                self._accounts.clear()
            account = self._accounts.setdefault(caller, _Account(level_s))
            account.settled_s = max(account.settled_s, level_s)
            self._active.add(caller)
        self._accounts[caller].work_count += 1

    def leave(self, caller: str) -> None:
        """Counts work that waited and is dropped; it costs nothing."""
        account = self._accounts[caller]
        account.work_count -= 1
        if not account.work_count:
            self._active.discard(caller)
            self._forget_idle()

    def begin(self, caller: str, expected_s: float) -> Charge:
        """Charges work that waited and now runs the seconds that it is expected to take."""
        self._charge(caller, expected_s)
        return Charge(self, caller, expected_s)

    def used_s(self, caller: str) -> float:
        """Returns the usage of a caller that has work, in seconds."""
        account = self._accounts[caller]
        return account.settled_s + account.running_s

    def start_tags(self, waiting: Iterable[tuple[str, float]]) -> list[float]:
        """Orders waiting work: the smallest tag goes first.

        Args:
            waiting: The caller and the expected seconds of each piece of work, oldest first.

        Returns:
            For each piece the usage of its caller once the caller's older work has run.
        """
        tags, reached = [], dict[str, float]()
        for caller, expected_s in waiting:
            tag = reached.get(caller)
            if tag is None:
                tag = self.used_s(caller)
            tags.append(tag)
            reached[caller] = tag + expected_s
        return tags

    def _charge(self, caller: str, seconds: float) -> None:
        self._accounts[caller].running_s += seconds

    def _settle(self, caller: str, charged_s: float, seconds: float) -> None:
        account = self._accounts[caller]
        account.running_s -= charged_s
        account.settled_s += seconds
        self.leave(caller)

    def _level_s(self) -> float:
        # Without the work that runs, so that a newcomer goes before callers whose work runs.
        return min((self._accounts[caller].settled_s for caller in self._active), default=0.0)

    def _forget_idle(self) -> None:
        """Forgets callers without work whose usage is below the level: it would not count again."""
        if len(self._accounts) <= 2 * len(self._active) + 16:
            return
        level_s = self._level_s()
        self._accounts = {
            caller: account
            for caller, account in self._accounts.items()
            if caller in self._active or account.settled_s > level_s
        }
