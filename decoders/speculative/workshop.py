"""What a worker has for building drafters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workshop:
    """Tools and material, shared by all drafters of one worker."""

    vocab_size: int
    naive: bool = False  # the oracles instead of the compiled kernels
    num_embeddings: int = 0  # inputs beyond the vocabulary: ids vocab_size, vocab_size + 1, ...

    @property
    def num_ids(self) -> int:
        """One past the largest id that may be fed."""
        return self.vocab_size + self.num_embeddings
