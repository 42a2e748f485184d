"""Searches give way: how many of their members take part in a step that others wait for.

A search may run a hundred sequences for one request. Beside requests without a search, so many of
its members decode in a step that the step takes at most SLOWDOWN times as long as without them, by
the cost curve, and at least one. Those that have waited longest come first. Alone they all run.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences

import numpy as np

from plait.decoders.contract.costs import CostCurve
from plait.server.engine.sequence import Sequence

SLOWDOWN = 1.4  # of the pass; the searches themselves take time as well


def take_turns(ready: Sequences[Sequence], costs: CostCurve, turn: int) -> list[Sequence]:
    """Return the sequences that may take part in a step, in their order.

    Args:
        ready: those that could.
        costs: what a step takes by its rows.
        turn: the number of the step; it rises.
    """
    searching = [s for s in ready if is_searching(s) and _is_decoding(s)]
    others = [s for s in ready if not is_searching(s) and _is_decoding(s)]
    chosen = searching
    if others and searching:
        seconds = costs.seconds(len(others) + len(searching))
        limit = SLOWDOWN * seconds[len(others)]
        room = int(np.searchsorted(seconds, limit, side="right")) - 1 - len(others)
        chosen = sorted(searching, key=lambda s: s.last_turn)[: max(room, 1)]
    for sequence in chosen:
        sequence.last_turn = turn
    left_out = {id(s) for s in searching} - {id(s) for s in chosen}
    return [s for s in ready if id(s) not in left_out]


def is_searching(sequence: Sequence) -> bool:
    """Tell whether it is a member of a search."""
    return sequence.request.decoding.search is not None


def _is_decoding(sequence: Sequence) -> bool:
    """Tell whether it feeds one row; prompts are read in chunks of what is left anyway."""
    return sequence.attention_block_size == 1 and sequence.num_prefill_tokens <= 1
