"""Whether two samplers draw from the same distribution, found on the rows that they drew from.

The surprise of a drawn token, less the entropy of its row's distribution, has a mean of 0 and a
known variance. Over many rows its sum in standard errors tells a wrong temperature or truncation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

STANDARD_ERRORS = 4.0
NEAR_TIES = 0.01  # of greedy tokens, where two of a row are equal in single precision


@dataclass(slots=True)
class Surprise:
    """The surprise of one sampler's tokens, summed over rows."""

    excess: float = 0.0
    variance: float = 0.0
    num_outside: int = 0  # tokens that the distribution gives nothing

    def add(self, scores: Tensor, tokens: Sequence[int]) -> None:
        """Add tokens, one of each row; scores [rows, vocab], whose softmax is the distribution."""
        logs = scores.double().log_softmax(-1)
        probs = logs.exp()
        seen = torch.where(probs > 0, logs, 0.0)
        entropy = -(probs * seen).sum(-1)
        self.variance += float(((probs * seen.square()).sum(-1) - entropy.square()).sum())
        drawn = logs.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        inside = drawn > -torch.inf
        self.num_outside += int((~inside).sum())
        self.excess += float((-drawn - entropy)[inside].sum())

    @property
    def standard_errors(self) -> float:
        """How far the mean is off."""
        return self.excess / sqrt(self.variance) if self.variance > 0 else 0.0

    def fault(self, name: str) -> str:
        """Return what is wrong with a sampler; nothing if it passes."""
        if self.num_outside:
            return f"{name}: {self.num_outside} tokens lie outside of the distribution"
        if abs(self.standard_errors) > STANDARD_ERRORS:
            return f"{name}: the surprise is {self.standard_errors:.1f} standard errors off"
        return ""


def greedy_fault(num_different: int, num_rows: int) -> str:
    """Return what is wrong with greedy tokens; nothing if all but near ties are equal."""
    is_fine = num_different <= NEAR_TIES * num_rows
    return "" if is_fine else f"{num_different} of {num_rows} greedy tokens differ"
