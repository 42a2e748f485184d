"""The prototypes that callers have trained, in memory, apart for each API key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from plait.server.api.classify.prototypes import Prototypes
from plait.server.errors import BadRequest, NotFound

MAX_SETS = 64  # of one API key
MAX_BYTES = 64 * 2**20  # of one API key


class PrototypeStore:
    """Sets of prototypes by API key and name; those used least recently are dropped for new ones.

    Used on one event loop. The number of keys is the operator's.
    """

    def __init__(self, max_sets: int = MAX_SETS, max_bytes: int = MAX_BYTES) -> None:
        self._max_sets = max_sets
        self._max_bytes = max_bytes
        self._sets: dict[str, OrderedDict[str, Prototypes]] = {}

    def put(self, tenant: str, prototypes: Prototypes) -> None:
        """Keep a set in place of one with the same name; raise BadRequest if it is too large."""
        if prototypes.num_bytes > self._max_bytes:
            raise BadRequest(
                f"These prototypes have {prototypes.num_bytes} bytes; a key may have "
                f"{self._max_bytes}. Use fewer classes or templates.",
                param="examples",
            )
        own = self._sets.setdefault(tenant, OrderedDict())
        own.pop(prototypes.name, None)
        own[prototypes.name] = prototypes
        while len(own) > self._max_sets or _num_bytes(own) > self._max_bytes:
            own.popitem(last=False)

    def use(self, tenant: str, name: str, *, param: str) -> Prototypes:
        """Return a set and note its use; raise NotFound if the key has none of this name."""
        own = self._sets.get(tenant, OrderedDict())
        if name not in own:
            raise NotFound(f"There are no prototypes {name!r}; train them first.", param=param)
        own.move_to_end(name)
        return own[name]

    def all(self, tenant: str) -> Sequence[Prototypes]:
        """Return a key's sets, used least recently first."""
        return list(self._sets.get(tenant, OrderedDict()).values())

    def drop(self, tenant: str, name: str) -> None:
        """Forget a set; raise NotFound if the key has none of this name."""
        if self._sets.get(tenant, OrderedDict()).pop(name, None) is None:
            raise NotFound(f"There are no prototypes {name!r}.", param="name")


def _num_bytes(sets: OrderedDict[str, Prototypes]) -> int:
    return sum(each.num_bytes for each in sets.values())
