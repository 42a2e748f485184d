"""The queue of compiles: tenants take turns, and first tries do not wait for long compiles.

A first try has a small CPU budget; a compile that needs more is queued again as a long one. So only
long compiles ever wait for another tenant's long compile.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

OFFENCE_S = 60.0  # for how long a compile that exceeded a limit counts against its tenant
MAX_TENANTS = 4096  # for which the last turn is remembered


@dataclass(slots=True)
class _TenantQueue(Generic[Item]):
    """One tenant's waiting compiles, in order of arrival; an ordered set (all values are None)."""

    tries: OrderedDict[Item, None] = field(default_factory=OrderedDict)
    long: OrderedDict[Item, None] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self.tries) + len(self.long)

    def of(self, is_long: bool) -> OrderedDict[Item, None]:
        return self.long if is_long else self.tries


class FairQueue(Generic[Item]):
    """A bounded queue. Cost of each call: linear in the number of waiting tenants.

    Laws: of two tenants that wait for the same kind of compile, the one with fewer recent offences
    is served first, and among equals the one that was served less recently; within a tenant the
    order is that of arrival. While both kinds wait, each has at least one slot.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._waiting: dict[str, _TenantQueue[Item]] = {}
        self._last_turns: OrderedDict[str, int] = OrderedDict()
        self._turn = 0
        self._offences: dict[str, deque[float]] = {}

    def __len__(self) -> int:
        """The number of waiting compiles; one that several tenants wait for counts for each."""
        return sum(map(len, self._waiting.values()))

    def __contains__(self, item: Item) -> bool:
        """Whether some tenant waits for it."""
        return any(item in lines.tries or item in lines.long for lines in self._waiting.values())

    def add(self, tenant: str, item: Item) -> Item | None:
        """Queue a first try; return the item that it displaced and that nobody waits for now.

        When the queue is full, the newest item of the tenant with the longest queue leaves: the
        added item itself if no other tenant has a longer queue.
        """
        own = self._waiting.get(tenant, _TenantQueue())
        if len(self) >= self._limit and item not in own.tries:
            longest = max(self._waiting.values(), key=len)
            if len(longest) <= len(own) + 1:
                return None if item in self else item
            youngest, _ = longest.of(not longest.tries).popitem()
            left = None if youngest in self else youngest
        else:
            left = None
        self._queue_of(tenant).tries[item] = None
        return left

    def put_back(self, tenant: str, item: Item, *, is_long: bool) -> None:
        """Queue an item again that had a turn: a first try in front, a long compile at the end.

        The limit does not apply; there are at most as many such items as slots.
        """
        line = self._queue_of(tenant).of(is_long)
        line[item] = None
        if not is_long:
            line.move_to_end(item, last=False)

    def discard(self, item: Item) -> None:
        """Remove an item from every tenant's queue."""
        for lines in self._waiting.values():
            lines.tries.pop(item, None)
            lines.long.pop(item, None)
        self._waiting = {tenant: lines for tenant, lines in self._waiting.items() if lines}

    def take(self, num_slots: int, num_long: int) -> tuple[Item, bool] | None:
        """Return the next item and whether it is a long compile; None: nothing may start.

        Args:
            num_slots: processes that may run at once, at least 2.
            num_long: long compiles that are running.
        """
        if num_long == 0 and (item := self._pop(is_long=True)) is not None:
            return item, True
        if (item := self._pop(is_long=False)) is not None:
            return item, False
        if num_long < num_slots - 1 and (item := self._pop(is_long=True)) is not None:
            return item, True
        return None

    def note_offence(self, tenant: str) -> None:
        """Record that a compile of this tenant exceeded its limit of time or memory."""
        self._offences.setdefault(tenant, deque()).append(self._clock() + OFFENCE_S)

    def _pop(self, *, is_long: bool) -> Item | None:
        tenants = [tenant for tenant, lines in self._waiting.items() if lines.of(is_long)]
        if not tenants:
            return None
        tenant = min(tenants, key=lambda t: (self._num_offences(t), self._last_turns.get(t, 0)))
        item = next(iter(self._waiting[tenant].of(is_long)))
        self._turn += 1
        self._last_turns[tenant] = self._turn
        self._last_turns.move_to_end(tenant)
        if len(self._last_turns) > MAX_TENANTS:
            self._last_turns.popitem(last=False)
        self.discard(item)
        return item

    def _num_offences(self, tenant: str) -> int:
        expiries = self._offences.get(tenant)
        if expiries is None:
            return 0
        while expiries and expiries[0] <= self._clock():
            expiries.popleft()
        if not expiries:
            del self._offences[tenant]
        return len(expiries)

    def _queue_of(self, tenant: str) -> _TenantQueue[Item]:
        return self._waiting.setdefault(tenant, _TenantQueue())
