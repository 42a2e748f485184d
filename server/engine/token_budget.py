"""How the rows of a step are shared out."""

from __future__ import annotations

from collections.abc import Sequence as Sequences

from plait.server.engine.sequence import Sequence


def plan_tokens(
    running: Sequences[Sequence], max_rows: int
) -> tuple[list[tuple[Sequence, int]], int]:
    """Return how many uncomputed tokens of each sequence a step feeds, and the budget left over.

    Sequences that decode come first, then prompts in order. A diffusion decoder also feeds
    num_canvas_tokens with the last of them, so these are subtracted too. The first sequence always
    takes part, even if it needs more than the budget; then the rest is negative.
    """
    left = max_rows
    planned: dict[int, int] = {}
    for sequence in sorted(running, key=_is_prefilling):
        rows = _num_scheduled_tokens(sequence, left, is_first=left == max_rows)
        if rows is None:
            continue
        planned[id(sequence)] = rows
        left -= rows + (sequence.num_canvas_tokens if rows == sequence.num_prefill_tokens else 0)
    return [(s, planned[id(s)]) for s in running if id(s) in planned], left


def _is_prefilling(sequence: Sequence) -> bool:
    return sequence.num_prefill_tokens > max(sequence.attention_block_size, 1)


def _num_scheduled_tokens(sequence: Sequence, left: int, *, is_first: bool) -> int | None:
    """Return how many pending rows to feed, in whole blocks; None: not in this step."""
    readable, canvas = sequence.num_prefill_tokens, sequence.num_canvas_tokens
    if readable + canvas <= left:
        return readable
    if not canvas:
        return min(readable, max(left, 0)) or None
    # The last block is kept for the step that feeds the canvas: it costs no forward of its own.
    block = max(sequence.attention_block_size, 1)
    rows = min(readable - block, left) // block * block
    if rows > 0:
        return rows
    return min(readable, block) if is_first else None
