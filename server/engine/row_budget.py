"""How the rows of a step are shared out."""

from __future__ import annotations

from collections.abc import Sequence as Sequences

from plait.server.engine.sequence import Sequence


def plan_rows(
    running: Sequences[Sequence], max_rows: int
) -> tuple[list[tuple[Sequence, int]], int]:
    """Return pending rows of each sequence that takes part in a step, and what is left of the rows.

    Sequences that decode come first, then prompts in order. A decoder with canvases is sure to feed
    num_canvas_rows beside the last pending rows, so these are taken too. The first sequence goes on
    even if it wants more than there is; then what is left is below 0.
    """
    left = max_rows
    planned: dict[int, int] = {}
    for sequence in sorted(running, key=_reads_prompt):
        rows = _rows_of(sequence, left, is_first=left == max_rows)
        if rows is None:
            continue
        planned[id(sequence)] = rows
        left -= rows + (sequence.num_canvas_rows if rows == sequence.num_readable else 0)
    return [(s, planned[id(s)]) for s in running if id(s) in planned], left


def _reads_prompt(sequence: Sequence) -> bool:
    return sequence.num_readable > max(sequence.block, 1)


def _rows_of(sequence: Sequence, left: int, *, is_first: bool) -> int | None:
    """Return how many pending rows to feed, in whole blocks; None: not in this step."""
    readable, canvas = sequence.num_readable, sequence.num_canvas_rows
    if readable + canvas <= left:
        return readable
    if not canvas:
        return min(readable, max(left, 0)) or None
    # The last block is kept for the step that feeds the canvas: it costs no forward of its own.
    block = max(sequence.block, 1)
    rows = min(readable - block, left) // block * block
    if rows > 0:
        return rows
    return min(readable, block) if is_first else None
