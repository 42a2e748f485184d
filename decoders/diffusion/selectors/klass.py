"""KLASS: unmasks confident positions whose distribution has stopped changing.

Law: the positions with p >= threshold whose divergence KL(now || previous step) was below
`divergence` (nats) in each of the last `history` steps; the most confident ones if there is none.
With an infinite divergence it is `threshold` from step `history` on.

Source: KLASS, arXiv:2511.05664, section 3, algorithm 1. Differences: only the 64 best tokens of the
previous step are kept. Tokens outside either list are merged into one, so the comparison is a lower
bound, exact for vocabularies of up to 64 tokens. The condition is p >= threshold, where the
reference has >.
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
    """The two thresholds, and for how many steps the second must hold."""

    threshold: float = Field(default=0.9, ge=0.0, le=2.0)
    divergence: float = Field(default=0.01, ge=0.0)  # nats; infinity: every distribution is stable
    history: int = Field(default=2, ge=1)
    tokens_per_step: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class KlassMemory:
    """The last step's positions, their best tokens, and for how many steps each has been stable."""

    positions: Ints  # [m] rising
    ids: Ints  # [m, k]
    p: Floats  # [m, k]
    stable_steps: Ints  # [m]


@dataclass(frozen=True, slots=True)
class Klass(ByProbability[KlassOptions]):
    """Unmasks what is confident and stable. Memory: the last step's distributions."""

    @property
    def needs(self) -> frozenset[str]:
        """The best tokens' probabilities."""
        return frozenset({"top"})

    def select(self, view: StepView, memory: KlassMemory | None) -> Selection:
        """Select by probability and stability."""
        assert view.top is not None
        ids, p = view.top
        stable = np.zeros(len(view.positions), dtype=np.int64)
        if memory is not None:
            at = np.searchsorted(memory.positions, view.positions)
            at = np.minimum(at, len(memory.positions) - 1)
            moved = _divergence((ids, p), (memory.ids[at], memory.p[at]))
            is_stable = (memory.positions[at] == view.positions) & (moved < self.options.divergence)
            stable = np.where(is_stable, memory.stable_steps[at] + 1, 0)
        unmask = (view.p >= self.options.threshold) & (stable >= self.options.history)
        if not unmask.any():
            unmask = top_k(view.p, self.options.tokens_per_step)
        return Selection(unmask, KlassMemory(view.positions, ids, p, stable))


def _divergence(now: tuple[Ints, Floats], before: tuple[Ints, Floats]) -> Floats:
    """Return [m] KL(now || before) in nats; tokens that are not in both lists count as one."""
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
    summary="Unmasks probable tokens whose distribution has stopped changing.",
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
