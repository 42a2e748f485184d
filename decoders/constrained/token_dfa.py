"""The deterministic automaton over tokens of a grammar whose own automaton is finite."""

from __future__ import annotations

from collections import deque

import numpy as np

from plait.decoders.constrained.table import OperationTable
from plait.decoders.constrained.vocabulary import Vocabulary
from plait.decoders.contract.constraint import NotFinite, TokenDfa
from plait.kernels.grammar import DEAD, Automaton
from plait.kernels.grammar.network import items_of

MAX_STATES = 4096
MAX_TRANSITIONS = 2**20


def build_token_dfa(
    table: OperationTable, vocabulary: Vocabulary, automaton: Automaton, start: int
) -> TokenDfa:
    """Return the automaton of the tokens that may follow a state of a grammar's automaton.

    Law: it accepts the texts that the grammar's automaton accepts, spelled in any way. Cost: one
    step of the automaton for each transition, some 50 ms where the limits are reached.

    Raises:
        NotFinite: there are more than MAX_STATES or MAX_TRANSITIONS; the message says why.
    """
    numbers, todo = {start: 0}, deque([start])
    rows: list[np.ndarray[tuple[int, int], np.dtype[np.int64]]] = []
    num_transitions = 0
    while todo:
        state = todo.popleft()
        tokens, targets = automaton.successors(state)
        for target in np.unique(targets).tolist():
            if target not in numbers and target != DEAD:
                numbers[target] = len(numbers)
                todo.append(target)
        num_transitions += len(tokens)
        if len(numbers) > MAX_STATES or num_transitions > MAX_TRANSITIONS:
            raise NotFinite(_reason(table))
        rows.append(np.stack([np.full_like(tokens, state), tokens, targets], axis=1))
    made = np.concatenate(rows)
    made = made[made[:, 2] != DEAD]
    number_of = np.zeros(max(numbers) + 1, np.int64)
    number_of[list(numbers)] = list(numbers.values())
    made[:, 0], made[:, 2] = number_of[made[:, 0]], number_of[made[:, 2]]
    made = made[np.lexsort((made[:, 1], made[:, 2], made[:, 0]))]
    return TokenDfa(
        source=made[:, 0].copy(),
        token=made[:, 1].copy(),
        target=made[:, 2].copy(),
        accepting=np.array([automaton.is_accepting(state) for state in numbers]),
        closing=np.array([automaton.num_closing(state) for state in numbers], np.int64),
        eos_token_ids=vocabulary.eos_token_ids,
    )


def _reason(table: OperationTable) -> str:
    why = "its grammar is recursive, and " if _is_recursive(table) else ""
    return f"{why}its automaton has over {MAX_STATES} states or {MAX_TRANSITIONS} transitions"


def _is_recursive(table: OperationTable) -> bool:
    """Tell whether some rule refers to itself, directly or through others."""
    inside = {op: set(items_of(each)) for op, each in enumerate(table.operations)}
    while leaves := {op for op, items in inside.items() if not items & inside.keys()}:
        inside = {op: items for op, items in inside.items() if op not in leaves}
    return bool(inside)
