"""Token counts of one text, laid out for the penalties."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import torch
from torch import Tensor


class TokenCounts:
    """How often each distinct token of a text stands in its output; 0 for prompt-only tokens.

    Parallel arrays, so that a penalty touches these entries of a row and no others.
    """

    def __init__(self, prompt: Iterable[int] = (), output: Iterable[int] = ()) -> None:
        self._slots: dict[int, int] = {}
        self._ids = array("q")
        self._counts = array("f")
        for token_id in prompt:
            self._slot(token_id)
        for token_id in output:
            self.add(token_id)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, token_id: int) -> None:
        """Count one output token. Cost: O(1)."""
        self._counts[self._slot(token_id)] += 1.0

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return ids [n] int64 and output counts [n] float32; n must not be 0."""
        # copied at once: frombuffer does not keep the array from moving when it grows
        ids = torch.frombuffer(self._ids, dtype=torch.int64).to(device, copy=True)
        counts = torch.frombuffer(self._counts, dtype=torch.float32).to(device, copy=True)
        return ids, counts

    def copy(self) -> TokenCounts:
        """Return an independent copy. Cost: O(distinct tokens)."""
        twin = TokenCounts()
        twin._slots = self._slots.copy()
        twin._ids = self._ids[:]
        twin._counts = self._counts[:]
        return twin

    def _slot(self, token_id: int) -> int:
        slot = self._slots.setdefault(token_id, len(self._ids))
        if slot == len(self._ids):
            self._ids.append(token_id)
            self._counts.append(0.0)
        return slot
