"""What a worker has for building drafters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from plait.decoders.contract.costs import CostCurve
from plait.decoders.speculative.stores.namespaces import DraftStores

if TYPE_CHECKING:
    from torch import Tensor

    from plait.decoders.speculative.draft_model.protocol import DraftModel


@dataclass(frozen=True, slots=True)
class DrafterContext:
    """Tools and material, shared by all drafters of one worker."""

    vocab_size: int
    naive: bool = False  # the oracles instead of the compiled kernels
    num_embeddings: int = 0  # inputs beyond the vocabulary: ids vocab_size, vocab_size + 1, ...
    embedding: Tensor | None = None  # [vocab, hidden] of the served model; not to be modified
    heads: Mapping[str, Path] = field(default_factory=dict)  # trained for it, by their drafters
    costs: CostCurve = field(default_factory=CostCurve)  # of a pass
    draft_model: DraftModel | None = None  # a second model, which writes ahead
    stores: DraftStores = field(default_factory=DraftStores)  # earlier texts, by namespace

    @property
    def num_ids(self) -> int:
        """One past the largest id that may be fed."""
        return self.vocab_size + self.num_embeddings
