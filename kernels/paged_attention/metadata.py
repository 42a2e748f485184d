"""Which rows of a forward pass belong together, and whom they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

BLOCK_SIZE: Final = 16  # tokens of one KV block
CAUSAL: Final = 0  # a row sees the rows before it in its segment; same numbers as protocol.Attend
TREE: Final = 1  # a row sees its ancestors in its segment
FULL: Final = 2  # a row sees its whole segment (protocol.Attend.BLOCK)
BRANCHES: Final = 3  # a row sees the rows of its branch, whole
SHADOW: Final = 4  # h rows see each other; then h more, the i-th of them itself in place of row i
CONTEXT: Final = 5  # a row sees the context and nothing else; its own token is part of it


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Runs of consecutive rows; each run belongs to one sequence and attends alike.

    Every row sees itself and the first context_len tokens of its sequence. A sequence may own
    several segments in one pass; the context of one may hold rows of another, and a CONTEXT segment
    is part of its own, since all keys and values are written before any are read. All tensors are
    on the model's device.
    """

    row_start: Tensor  # [s + 1] int32: rows row_start[i] .. row_start[i + 1] - 1
    context_len: Tensor  # [s] int32: row j is stored as token context_len + j (CONTEXT: anywhere)
    block_tables: Tensor  # [s, max_blocks] int32: block of token t at t // 16
    attend: Tensor  # [s] int32: one of the kinds above
    parents: Tensor  # [rows] int32. TREE: an earlier row of the segment, -1: context only;
    # BRANCHES: any number that the rows of a branch have in common
    positions: Tensor  # [rows] int32: rotary position (tree: context_len + depth)
    slots: Tensor  # [rows] int64: block * 16 + offset where the row's key and value are written
