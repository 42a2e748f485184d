"""WINO: unmasks many positions at once and remasks those that the rest of the block contradicts.

A forward pass also computes a leave-one-out view of the block: a mask token at every position,
which sees the block without the token at its own position. Law of a step: of the positions with p
>= draft the `cap` most confident are unmasked (the most confident of all if there is none). Then,
if more than one was unmasked, the positions unmasked in earlier steps whose token has less than
`verify` in the leave-one-out view are masked again, the least probable first and fewer than the
previous step has unmasked, so that every two steps make progress. cap = min(max(floor(0.7 m), 5),
20) for m masked positions. With verify = 0 it is a threshold with a cap.

Source: WINO, arXiv:2507.18578, algorithm 1 and released code. Differences: tokens that this method
did not unmask itself (the prompt, forced tokens) are never remasked; p >= draft, where the
reference has >.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.protocols import ByProbability, Ints, Selection, StepView, top_k

SHARE, LEAST, MOST = 0.7, 5, 20  # of the masked positions; how many a step may unmask


class WinoOptions(Options):
    """The thresholds for unmasking and for staying unmasked."""

    draft: float = Field(default=0.7, ge=0.0, le=2.0)
    verify: float = Field(default=0.9, ge=0.0, le=1.0)


@dataclass(frozen=True, slots=True)
class WinoMemory:
    """What this method has unmasked in the block so far."""

    positions: Ints  # rising
    last: int  # positions unmasked by the last step


@dataclass(frozen=True, slots=True)
class Wino(ByProbability[WinoOptions]):
    """Unmasks a step's best positions and remasks doubtful ones. Memory: what it has unmasked."""

    @property
    def needs(self) -> frozenset[str]:
        """The leave-one-out probabilities of unmasked tokens."""
        return frozenset({"leave_one_out"})

    def select(self, view: StepView, memory: WinoMemory | None) -> Selection:
        """Select what is unmasked and what is remasked."""
        before = memory or WinoMemory(view.positions[:0], 0)
        passing = int(np.count_nonzero(view.p >= self.options.draft))
        cap = min(max(int(SHARE * len(view.positions)), LEAST), MOST)
        unmask = top_k(view.p, min(max(passing, 1), cap))
        num_unmasked = int(np.count_nonzero(unmask))
        remask = self._doubtful(view, before) if num_unmasked > 1 else before.positions[:0]
        kept = np.setdiff1d(before.positions, remask)
        positions = np.union1d(kept, view.positions[unmask])
        return Selection(unmask, WinoMemory(positions, num_unmasked), tuple(remask.tolist()))

    def _doubtful(self, view: StepView, before: WinoMemory) -> Ints:
        """Return the positions to remask, the least probable first."""
        assert view.leave_one_out is not None
        own = before.positions[view.block_tokens[before.positions - view.start] >= 0]
        p = view.leave_one_out[own - view.start]
        worst = np.argsort(p, kind="stable")[: max(before.last - 1, 0)]
        return own[worst[p[worst] < self.options.verify]]


make = Wino.make
METHOD = Method(
    kind="unmasker",
    part="selector",
    name="wino",
    summary="Unmasks many positions at once and remasks what the rest of the block contradicts.",
    source="WINO, arXiv:2507.18578, algorithm 1",
    target="plait.decoders.diffusion.selectors.wino:make",
    options=WinoOptions,
    needs=frozenset({"canvas", "shadow"}),
    # A leave-one-out view can't be verified ahead, nor written in place.
    excludes=frozenset({"free-dave", "prefix-cache", "dual-cache", "dkv-cache", "recap"}),
    presets={
        "gsm8k": {"draft": 0.6, "verify": 0.9},
        "countdown": {"draft": 0.5, "verify": 0.9},
        "llada": {"draft": 0.7, "verify": 0.9},
    },
)
