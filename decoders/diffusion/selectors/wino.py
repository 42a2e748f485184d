"""WINO: settle boldly, and open again what the rest of the block then speaks against.

A forward pass also carries a shadow of the block: a mask at every position, which sees the block
without the token that stands there. Law of a step: of the holes with p >= draft the `cap` surest
are settled (the surest of all if there is none); then, if more than one was, those settled in
earlier steps whose token the shadow gives less than `verify` become holes again, the worst first
and fewer than the step before settled, so that every two steps gain. cap = min(max(floor(0.7 h),
5), 20) of h holes. With verify = 0 it is a threshold with a cap.

Source: WINO, arXiv:2507.18578, algorithm 1 and released code. Departures: what this method did not
settle itself (the prompt, forced tokens) is never opened; p >= draft, where the reference has >.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import ByProbability, Ints, Selection, StepView, top_k

SHARE, LEAST, MOST = 0.7, 5, 20  # of the open holes; how many a step may settle


class WinoOptions(Options):
    """The bars for settling and for staying settled."""

    draft: float = Field(default=0.7, ge=0.0, le=2.0)
    verify: float = Field(default=0.9, ge=0.0, le=1.0)


@dataclass(frozen=True, slots=True)
class WinoMemory:
    """What this method has settled in the block so far."""

    positions: Ints  # rising
    last: int  # holes settled by the last step


@dataclass(frozen=True, slots=True)
class Wino(ByProbability[WinoOptions]):
    """Settles a step's best holes and opens doubtful ones. Memory: what it has settled."""

    @property
    def needs(self) -> frozenset[str]:
        """What the shadow rows say of settled tokens."""
        return frozenset({"shadow"})

    def select(self, view: StepView, memory: WinoMemory | None) -> Selection:
        """Choose what is settled and what is opened."""
        before = memory or WinoMemory(view.holes[:0], 0)
        passing = int(np.count_nonzero(view.p >= self.options.draft))
        cap = min(max(int(SHARE * len(view.holes)), LEAST), MOST)
        settle = top_k(view.p, min(max(passing, 1), cap))
        num_settled = int(np.count_nonzero(settle))
        reopen = self._doubtful(view, before) if num_settled > 1 else before.positions[:0]
        kept = np.setdiff1d(before.positions, reopen)
        positions = np.union1d(kept, view.holes[settle])
        return Selection(settle, WinoMemory(positions, num_settled), tuple(reopen.tolist()))

    def _doubtful(self, view: StepView, before: WinoMemory) -> Ints:
        """Return the positions to open, worst first."""
        assert view.shadow is not None
        own = before.positions[view.settled[before.positions - view.start] >= 0]
        p = view.shadow[own - view.start]
        worst = np.argsort(p, kind="stable")[: max(before.last - 1, 0)]
        return own[worst[p[worst] < self.options.verify]]


make = Wino.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="wino",
    summary="Settles boldly and opens again what the rest of the block speaks against.",
    source="WINO, arXiv:2507.18578, algorithm 1",
    target="plait.decoders.diffusion.selectors.wino:make",
    options=WinoOptions,
    needs=frozenset({"canvas", "shadow"}),
    # A shadow can't be verified ahead, nor written in place.
    excludes=frozenset({"free-dave", "prefix-cache", "dual-cache", "dkv-cache", "recap"}),
    presets={
        "gsm8k": {"draft": 0.6, "verify": 0.9},
        "countdown": {"draft": 0.5, "verify": 0.9},
        "llada": {"draft": 0.7, "verify": 0.9},
    },
)
