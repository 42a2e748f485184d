"""What a worker gives to the drafters that it builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from plait.decoders.contract.costs import CostCurve
from plait.decoders.speculative.stores.namespaces import DraftStores

if TYPE_CHECKING:
    from torch import Tensor

    from plait.decoders.speculative.draft_model.protocol import DraftModel
    from plait.kernels.backend import KernelBackend


class Embedding(Protocol):
    """Rows of a model's embedding: a tensor [vocab, hidden], or what unpacks them when read."""

    def __getitem__(self, token_ids: Tensor, /) -> Tensor:
        """Return [*token_ids, hidden], fp32 or bf16."""


def _cpu_backend() -> KernelBackend:
    """Return the CPU's backend; a front end lists drafters without loading torch."""
    backend: KernelBackend = import_module("plait.kernels.dispatch").cpu_backend()
    return backend


@dataclass(frozen=True, slots=True)
class DrafterContext:
    """Model facts, weights and stores that all drafters of one worker share."""

    vocab_size: int
    backend: KernelBackend = field(default_factory=_cpu_backend)  # of the model's device
    num_embeddings: int = 0  # trained inputs with ids vocab_size, vocab_size + 1, ...
    embedding: Embedding | None = None  # of the served model; not to be modified
    heads: Mapping[str, Path] = field(default_factory=dict)  # weight files, by drafter name
    costs: CostCurve = field(default_factory=CostCurve)  # seconds of a forward pass
    draft_model: DraftModel | None = None
    stores: DraftStores = field(default_factory=DraftStores)  # earlier texts, by namespace

    @property
    def num_ids(self) -> int:
        """One past the largest id that can be fed."""
        return self.vocab_size + self.num_embeddings
