"""Bitmasks of what constraints allow, as the samplers take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plait.decoders.contract.constraint import Constraint
from plait.decoders.speculative.tree import ROOT, DraftTree


def allow_all_bitmask(rows: int, vocab_size: int) -> Tensor:
    """Return [rows, words] int32 that allows everything."""
    return torch.full((rows, -(-vocab_size // 32)), -1, dtype=torch.int32)


def next_bitmask(constraint: Constraint | None, vocab_size: int) -> Tensor | None:
    """Return [1, words] int32: what may follow where a constraint stands; None without one."""
    if constraint is None:
        return None
    bitmask = allow_all_bitmask(1, vocab_size)
    constraint.fill_bitmask(bitmask, 0)
    return bitmask


def fill_bitmask(constraint: Constraint, tree: DraftTree, first: int, bitmask: Tensor) -> None:
    """Fill the rows of one sequence; the constraint stands afterwards where it stood.

    Row `first` follows the text, row first + 1 + i node i of the draft. Rows behind a token that
    the constraint forbids stay as they are: they are never reached.
    """
    constraint.fill_bitmask(bitmask, first)
    path: list[int] = []  # nodes whose tokens the constraint has accepted
    try:
        for node in range(len(tree)):
            if _move_constraint(constraint, tree, path, node):
                constraint.fill_bitmask(bitmask, first + 1 + node)
    finally:
        constraint.rollback(len(path))


def _move_constraint(constraint: Constraint, tree: DraftTree, path: list[int], node: int) -> bool:
    """Move the constraint from the end of a path to a node; False if that can't be reached."""
    wanted = [*_path_to(tree, tree.parents[node]), node]
    shared = _num_common(path, wanted)
    constraint.rollback(len(path) - shared)
    del path[shared:]
    for each in wanted[shared:]:
        if not constraint.accept_token(tree.token_ids[each]):
            return False
        path.append(each)
    return True


def _path_to(tree: DraftTree, node: int) -> list[int]:
    """Return the nodes from the first level down to one."""
    path: list[int] = []
    while node != ROOT:
        path.append(node)
        node = tree.parents[node]
    return path[::-1]


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common beginning."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))
