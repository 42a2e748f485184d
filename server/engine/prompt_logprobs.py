"""Log-probabilities of the prompt's own tokens (/v1/completions with echo and logprobs)."""

from __future__ import annotations

from collections.abc import Sequence as Sequences

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plait.decoders.sampling.logprobs import prompt_logprobs
from plait.server.engine.runner import Runner
from plait.server.engine.sequence import Slice
from plait.server.pool.messages import TokenLogprob


def collect_prompt_logprobs(
    runner: Runner, slices: Sequences[Slice], hidden: Tensor, offsets: NDArray[np.int64]
) -> None:
    """Append to each sequence that asked what this step's rows say of the prompt's next tokens.

    The first token has no law of its own: its entry is None. A chunk that is computed again after
    a preemption adds nothing.
    """
    for piece, first in zip(slices, offsets[:-1].tolist(), strict=True):
        sequence = piece.sequence
        if not sequence.wants_prompt_logprobs:
            continue
        if not sequence.prompt_logprobs:
            sequence.prompt_logprobs.append(None)
        start = len(sequence.prompt_logprobs) - 1  # row that tells of the first missing token
        stop = min(sequence.num_cached + piece.num_pending, sequence.prompt_length - 1)
        if start < sequence.num_cached or start >= stop:
            continue
        rows = hidden[first + start - sequence.num_cached : first + stop - sequence.num_cached]
        tokens = sequence.tokens[start + 1 : stop + 1]
        found = prompt_logprobs(
            runner.model.logits(rows), tokens, sequence.request.prompt_logprobs or 0
        )
        sequence.prompt_logprobs.extend(
            TokenLogprob(t.token_id, t.logprob, list(t.top)) for t in found
        )
