"""What samplers, drafters and unmaskers ask of rows of scores, one pass over memory a row.

All scores are float32 [b, vocab] with contiguous rows, in natural-log units; -inf marks a token
that can't be drawn. Law: a row's results never depend on other rows. Equals are ordered by token
id. Bit t % 32 of word t // 32 of a bitmask [b, words] int32 says that token t is legal; a token
without a bit is illegal.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowStats:
    """Statistics of softmax(scores), float32 unless said."""

    top_ids: Tensor  # [b, 2] int64: the best token and the next
    top_scores: Tensor  # [b, 2]
    logsumexp: Tensor  # [b]
    entropy: Tensor  # [b], nats; nan if nobody asked for it


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Logarithms of softmax(scores)."""

    chosen: Tensor  # [b] float32
    top_ids: Tensor  # [b, k] int64, best first
    top: Tensor  # [b, k] float32
