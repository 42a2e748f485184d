"""Which replica gets a request: the one that knows most of its prompt, unless it is far busier.

A hint only. The map is bounded, forgets, and may be wrong; a wrong guess costs prefill, no answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

PREFIX_BLOCK = 64  # tokens: four blocks of the KV cache
MAX_PREFIXES = 65_536  # blocks remembered per model, some 10 MB
MAX_IMBALANCE = 8  # requests by which a known prefix may outweigh the load


class PrefixMap:
    """Remembers which replica has last seen each prefix, in blocks of tokens."""

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
        """Note that this replica now holds these prefixes; the oldest are forgotten."""
        for prefix in prefixes:
            self._replicas[prefix] = replica
            self._replicas.move_to_end(prefix)
        while len(self._replicas) > self._max:
            self._replicas.popitem(last=False)


def prefix_hashes(token_ids: Sequence[int], salt: str) -> Iterator[int]:
    """Yield one hash per full block of the prompt, each over all before it, and over the salt.

    Python's own hash will do: a collision, even a wilful one, misroutes and nothing else.
    """
    chain = hash(salt)
    for start in range(0, len(token_ids) - PREFIX_BLOCK + 1, PREFIX_BLOCK):
        chain = hash((chain, *token_ids[start : start + PREFIX_BLOCK]))
        yield chain


def choose_replica(
    loads: dict[int, int], preferred: int | None, max_imbalance: int = MAX_IMBALANCE
) -> int:
    """Return a key of `loads` (requests in flight per replica): the preferred one if it is there
    and at most max_imbalance busier than the least loaded, else the least loaded."""
    least = min(loads, key=lambda replica: (loads[replica], replica))
    if preferred in loads and loads[preferred] - loads[least] <= max_imbalance:
        return preferred
    return least
