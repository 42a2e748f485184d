"""CPU memory that the system hands out when it is first written, in huge pages where it has them.

A pass reads all weights and whole contexts. In pages of 4 KB that is a walk through the page table
for every 64 cache lines, and in a virtual machine a walk reads two tables. Linux gives huge pages
to those who ask (`transparent_hugepage` set to madvise, as most distributions have it, or always).
"""

from __future__ import annotations

import math
import mmap
from typing import Final

import torch
from torch import Tensor

HUGE_PAGE: Final = 2**21
_CHUNK = 2**26
_ALIGNMENT = 64  # a cache line


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros in CPU memory that the system hands out when it is first written, 2 MB a time.

    torch.zeros would write, and so take, all of it.

    Raises:
        OSError: the system does not promise that much.
    """
    return _huge_pages(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


class Arena:
    """Keeps tensors that stay for long in huge pages, one after the other.

    The memory of a chunk is given back when the last of its tensors is gone.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return a copy."""
        size = tensor.nbytes
        if size > len(self._free):
            self._free = _huge_pages(max(size, _CHUNK))
        kept = self._free[:size].view(tensor.dtype).view(tensor.shape)
        self._free = self._free[-(-size // _ALIGNMENT) * _ALIGNMENT :]
        return kept.copy_(tensor)


def _huge_pages(size: int) -> Tensor:
    pages = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    start = -memory.data_ptr() % HUGE_PAGE
    return memory[start : start + size]
