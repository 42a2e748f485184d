"""Prefix-aware routing: prefer the replica that knows most of a prompt, unless it is too busy.

The map is a bounded hint and may be wrong; a wrong choice costs prefill time only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

PREFIX_BLOCK = 64  # tokens: four blocks of the KV cache
MAX_PREFIXES = 65_536  # blocks remembered per model, some 10 MB
MAX_IMBALANCE = 8  # requests that the preferred replica may have more than the least loaded one


class PrefixMap:
    """Maps each prefix (in blocks of tokens) to the replica that saw it last; an LRU map."""

    def __init__(self, max_prefixes: int = MAX_PREFIXES) -> None:
        self._replicas: OrderedDict[int, int] = OrderedDict()
        self._max = max_prefixes

    def __len__(self) -> int:
        return len(self._replicas)

    def longest(self, prefixes: Sequence[int]) -> int | None:
        """Return the replica that has seen the longest of these prefixes."""
        for prefix in reversed(prefixes):
            if prefix in self._replicas:
                return self._replicas[prefix]
        return None

    def remember(self, prefixes: Sequence[int], replica: int) -> None:
        """Record that a replica holds these prefixes; the least recent ones are evicted."""
        for prefix in prefixes:
            self._replicas[prefix] = replica
            self._replicas.move_to_end(prefix)
        while len(self._replicas) > self._max:
            self._replicas.popitem(last=False)


def prefix_hashes(token_ids: Sequence[int], salt: str) -> Iterator[int]:
    """Yield one hash per full block of the prompt, over the salt and all tokens up to its end.

    Python's own hash is enough: a collision, even a deliberate one, only misroutes a request.
    """
    chain = hash(salt)
    for start in range(0, len(token_ids) - PREFIX_BLOCK + 1, PREFIX_BLOCK):
        chain = hash((chain, *token_ids[start : start + PREFIX_BLOCK]))
        yield chain


def choose_replica(
    loads: dict[int, int], preferred: int | None, max_imbalance: int = MAX_IMBALANCE
) -> int:
    """Return the replica to use: the preferred one if it is in `loads` (requests in flight per
    replica) and at most max_imbalance above the least loaded one, else the least loaded one."""
    least = min(loads, key=lambda replica: (loads[replica], replica))
    if preferred in loads and loads[preferred] - loads[least] <= max_imbalance:
        return preferred
    return least
