from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Classes of the 256 bytes, their number, next [states, classes] as int32 (-1: dead), accepting
# states, states that are reached when a character is complete.
DfaParts = tuple[bytes, int, bytes, bytes, bytes]

class TooLargeError(ValueError): ...

class Vocabulary:
    def __init__(self, spelled: Sequence[bytes]) -> None: ...

class Automaton:
    def __init__(
        self,
        operations: Sequence[tuple[object, ...]],
        dfas: Sequence[DfaParts],
        root: int,
        vocabulary: Vocabulary,
    ) -> None: ...
    @property
    def start(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    def step(self, state: int, byte: int) -> int: ...
    def advance(self, state: int, token_id: int) -> int: ...
    def write_mask(self, state: int, row: NDArray[np.int32]) -> None: ...
    def is_accepting(self, state: int) -> bool: ...
    def is_final(self, state: int) -> bool: ...
    def num_closing(self, state: int) -> int: ...
    def closing_tokens(self, state: int) -> list[int]: ...
    def forced(self, state: int) -> tuple[list[int], list[int]]: ...

class Saturation:
    def __init__(
        self,
        edges: Sequence[tuple[int, int, int, int]],
        num_states: int,
        starts: Sequence[int],
        finals: Sequence[int],
        sets: Sequence[bytes],
        root: int,
        byte_costs: Sequence[int],
    ) -> None: ...
    def fill(
        self, leave: Sequence[int], loops: Sequence[bool], max_items: int
    ) -> tuple[int, list[tuple[int, int]]]: ...

def determinise(
    expressions: Sequence[tuple[int, Sequence[int], Sequence[tuple[int, int]], int, int]],
    is_quoted: bool,
    max_states: int,
    max_steps: int,
) -> DfaParts | None: ...
def is_possible(dfa: DfaParts, least: int, most: int) -> bool: ...
