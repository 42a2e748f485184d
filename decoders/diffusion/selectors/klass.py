"""KLASS: holes that are sure and whose law has stopped moving.

Law: the holes with p >= threshold whose divergence KL(now || step before) was below `divergence`
(nats) in each of the last `history` steps; the surest ones if there is none. With an infinite
divergence it is `threshold` from step `history` on.

Source: KLASS, arXiv:2511.05664, section 3, algorithm 1. Departures: only the 64 best tokens of the
step before are kept. Tokens outside either list count as one, so what is compared is a bound from
below, exact for vocabularies of up to 64 tokens; and p >= threshold, where the reference has >.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import (
    ByProbability,
    Floats,
    Ints,
    Selection,
    StepView,
    top_k,
)

TINY = 1e-12


class KlassOptions(Options):
    """What is sure, what is still, and for how long."""

    threshold: float = Field(default=0.9, ge=0.0, le=2.0)
    divergence: float = Field(default=0.01, ge=0.0)  # nats; infinity: every law is still
    history: int = Field(default=2, ge=1)
    tokens_per_step: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class KlassMemory:
    """What the last step said: its holes, their best tokens, and how long each has been still."""

    holes: Ints  # [h] rising
    ids: Ints  # [h, k]
    p: Floats  # [h, k]
    still: Ints  # [h] steps


@dataclass(frozen=True, slots=True)
class Klass(ByProbability[KlassOptions]):
    """Settles what is sure and still. Memory: the last step's laws."""

    @property
    def needs(self) -> frozenset[str]:
        """The best tokens' probabilities."""
        return frozenset({"top"})

    def select(self, view: StepView, memory: KlassMemory | None) -> Selection:
        """Choose by probability and stillness."""
        assert view.top is not None
        ids, p = view.top
        still = np.zeros(len(view.holes), dtype=np.int64)
        if memory is not None:
            at = np.searchsorted(memory.holes, view.holes)
            at = np.minimum(at, len(memory.holes) - 1)
            moved = _divergence((ids, p), (memory.ids[at], memory.p[at]))
            calm = (memory.holes[at] == view.holes) & (moved < self.options.divergence)
            still = np.where(calm, memory.still[at] + 1, 0)
        settle = (view.p >= self.options.threshold) & (still >= self.options.history)
        if not settle.any():
            settle = top_k(view.p, self.options.tokens_per_step)
        return Selection(settle, KlassMemory(view.holes, ids, p, still))


def _divergence(now: tuple[Ints, Floats], before: tuple[Ints, Floats]) -> Floats:
    """Return [h] KL(now || before) in nats; tokens that are not in both lists count as one."""
    (ids, p), (old_ids, old_p) = now, before
    rows = np.arange(len(ids))[:, None] << 32
    wanted, known = (rows + ids).ravel(), (rows + old_ids).ravel()
    order = np.argsort(known)
    at = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
    shared = (known[at] == wanted).reshape(ids.shape)
    q = np.where(shared, old_p.ravel()[at].reshape(ids.shape), 0.0)
    own = np.where(shared, p * np.log(np.maximum(p, TINY) / np.maximum(q, TINY)), 0.0).sum(axis=1)
    rest = np.maximum(1.0 - np.where(shared, p, 0.0).sum(axis=1), 0.0)
    old_rest = np.maximum(1.0 - q.sum(axis=1), 0.0)
    result: Floats = own + rest * np.log(np.maximum(rest, TINY) / np.maximum(old_rest, TINY))
    return np.maximum(result, 0.0)


make = Klass.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="klass",
    summary="Holes that are probable enough and whose law has stopped moving.",
    source="KLASS, arXiv:2511.05664, algorithm 1",
    target="plait.decoders.diffusion.selectors.klass:make",
    options=KlassOptions,
    needs=frozenset({"canvas"}),
    presets={
        "llada-gsm8k": {"threshold": 0.6, "divergence": 0.015},
        "llada-math": {"threshold": 0.6, "divergence": 0.01},
        "llada-humaneval": {"threshold": 0.9, "divergence": 0.01},
        "llada-mbpp": {"threshold": 0.7, "divergence": 0.01},
        "dream": {"threshold": 0.9, "divergence": 0.001},
    },
)
