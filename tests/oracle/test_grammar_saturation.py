"""Texts with gaps against brute force: whether they can be filled, and with how few bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest

from plait.decoders.constrained.grammar.gbnf import parse
from plait.decoders.constrained.table import build_table
from plait.kernels import grammar as kernels
from plait.kernels.grammar import OpKind
from plait.kernels.grammar.network import Network, build_network
from plait.kernels.grammar.reference import ReferenceVocabulary
from plait.kernels.grammar.saturation import (
    ANY_BYTE,
    BYTES,
    MAX_ITEMS,
    NOTHING,
    TOKEN,
    TOKEN_OR_NOTHING,
    TOKENS,
    Found,
    ReferenceSaturation,
    Saturation,
    make_saturation,
)
from tests.fixtures.grammar_automata import compiled

LONGEST = 8  # letters of the texts that are enumerated
LETTERS = b"ab"
COSTS = [1 if byte in LETTERS else 0 for byte in range(256)]
Table = list[tuple[Any, ...]]
Line = tuple[list[int], list[int]]  # what leaves each position, where bytes may be inserted


def random_table(draw: random.Random) -> Table:
    """Return operations whose first three are rules, of any shape, left-recursive ones too."""
    table: Table = [(OpKind.RULE, 0)] * 3
    for rule in range(3):
        table[rule] = (OpKind.RULE, _add_random(table, draw, 3))
    return table


def _add_random(table: Table, draw: random.Random, depth: int) -> int:
    kind = draw.choice([*OpKind][: 7 if depth else 2])
    if kind is OpKind.RULE:
        return draw.randrange(3)
    if kind is OpKind.TEXT:
        rest: tuple[Any, ...] = (bytes(draw.choices(LETTERS, k=draw.randrange(3))),)
    elif kind is OpKind.SET:
        rest = (bytes(draw.sample(LETTERS, draw.randrange(1, 3))),)
    elif kind is OpKind.LISTED:
        rest = (sorted({bytes(draw.choices(LETTERS, k=draw.randrange(4))) for _ in range(3)}),)
    elif kind is OpKind.REPEAT:
        least = draw.randrange(3)
        item = _add_random(table, draw, depth - 1)
        rest = (item, least, draw.choice([-1, least, least + 1, least + 11]))
    else:
        count = draw.randrange(1, 4)
        rest = ([_add_random(table, draw, depth - 1) for _ in range(count)],)
    table.append((kind, *rest))
    return len(table) - 1


def words(table: Table) -> set[bytes]:
    """Return the texts of rule 0 up to LONGEST letters: the least fixed point over all rules."""
    known: list[set[bytes]] = [set()] * 3
    while True:
        wider = [texts(table, table[rule][1], known) for rule in range(3)]
        if wider == known:
            return known[0]
        known = wider


def texts(table: Table, op: int, known: Sequence[set[bytes]]) -> set[bytes]:
    kind, *rest = table[op]
    if kind is OpKind.RULE:
        return known[op]
    if kind in (OpKind.TEXT, OpKind.LISTED):
        return {rest[0]} if kind is OpKind.TEXT else set(rest[0])
    if kind is OpKind.SET:
        return {bytes([byte]) for byte in rest[0]}
    if kind is OpKind.SEQ:
        found = {b""}
        for item in rest[0]:
            found = joined(found, texts(table, item, known))
        return found
    if kind is OpKind.CHOICE:
        return set().union(*(texts(table, item, known) for item in rest[0]))
    return repeated(texts(table, rest[0], known), rest[1], rest[2])


def joined(left: set[bytes], right: set[bytes]) -> set[bytes]:
    return {a + b for a, b in product(left, right) if len(a + b) <= LONGEST}


def repeated(items: set[bytes], least: int, most: int) -> set[bytes]:
    found, layer, times = set[bytes](), {b""}, 0
    while layer and (most < 0 or times <= most) and times <= least + LONGEST:
        found |= layer if times >= least else set()
        layer, times = joined(layer, items), times + 1
    return found


def random_line(draw: random.Random, *, with_tokens: bool = False) -> Line:
    kinds = [*LETTERS, *LETTERS, ANY_BYTE]
    kinds = [*LETTERS, TOKEN, TOKEN_OR_NOTHING, TOKEN_OR_NOTHING] if with_tokens else kinds
    leave = [draw.choice(kinds) for _ in range(draw.randrange(6))]
    inserted = TOKENS if with_tokens else BYTES
    loops = [inserted if draw.random() < 0.3 else NOTHING for _ in range(len(leave) + 1)]
    return leave, [0 if each > ANY_BYTE else n for each, n in zip([*leave, 0], loops, strict=True)]


def cheapest(language: set[bytes], line: Line) -> int | None:
    """Return the fewest bytes that are inserted to give a word of the language; None: none does."""
    found = [cost for word in language if (cost := insertions(word, *line)) is not None]
    return min(found, default=None)


def insertions(word: bytes, leave: Sequence[int], loops: Sequence[int]) -> int | None:
    if len(word) < len(leave):
        return None
    ends = {(0, 0)}  # (position, bytes inserted) behind each letter
    for letter in word:
        stay = {(at, n + 1) for at, n in ends if loops[at]}
        go = {(at + 1, n) for at, n in ends if at < len(leave) and leave[at] in (letter, ANY_BYTE)}
        ends = stay | go
    return min((n for at, n in ends if at == len(leave)), default=None)


def network_of(table: Table) -> Network:
    return build_network(table, [], 0)


def filled(line: Line, filling: Sequence[tuple[int, int]]) -> bytes:
    """Return the text of a filling; its entries are consumed position by position."""
    leave, _ = line
    at_each: list[list[int]] = [[] for _ in range(len(leave) + 1)]
    for at, byte in filling:
        at_each[at].append(byte)
    text = b""
    for own, given in zip(at_each, [*leave, -1], strict=True):
        text += bytes(own) + (bytes([given]) if 0 <= given < ANY_BYTE else b"")
    return text


@pytest.mark.parametrize("seed", range(8))
def test_a_text_can_be_filled_exactly_if_some_word_fits(seed: int) -> None:
    draw = random.Random(seed)
    seen = dict.fromkeys(Found, 0)
    for _ in range(60):
        table = random_table(draw)
        language = words(table)
        saturation: Saturation = ReferenceSaturation(network_of(table), COSTS)
        if kernels.available():
            saturation = make_saturation(network_of(table), COSTS)
        for _ in range(12):
            line = random_line(draw)
            have, filling = saturation.fill(*line, MAX_ITEMS)
            want = cheapest(language, line)
            if have == Found.FILLED and len(filled(line, filling)) > LONGEST:
                continue  # the enumeration does not reach so far
            assert (have == Found.FILLED) == (want is not None), (table, line)
            if want is not None:
                text = filled(line, filling)
                assert text in language, (table, line)
                assert len(text) - len(line[0]) == want == insertions(text, *line)
            seen[Found(have)] += 1
    assert min(seen[Found.EMPTY], seen[Found.FILLED]) > 100


@compiled
@pytest.mark.parametrize("seed", range(6))
def test_both_saturations_say_the_same(seed: int) -> None:
    draw = random.Random(seed)
    costs = [draw.randrange(3) if byte in LETTERS else 0 for byte in range(256)]
    tokens = [b"a", b"ab", b"bab", b"bb", b""]
    handles = kernels.make_vocabulary(tokens), ReferenceVocabulary(tokens)
    for _ in range(80):
        network = network_of(random_table(draw))
        fast = make_saturation(network, costs, handles[0])
        slow = ReferenceSaturation(network, costs, handles[1])
        for i in range(8):
            line = random_line(draw, with_tokens=i % 2 == 1)
            answers = [each.fill(*line, MAX_ITEMS) for each in (fast, slow)]
            assert answers[0][0] == answers[1][0]
            if i % 2 == 0:
                prices = [sum(costs[byte] for _, byte in filling) for _, filling in answers]
                assert prices[0] == prices[1], (network, line)
            else:
                counts = [inserted_tokens(line, filling, tokens) for _, filling in answers]
                assert counts[0] == counts[1], (network, line)


def inserted_tokens(line: Line, filling: Sequence[tuple[int, int]], tokens: Sequence[bytes]) -> int:
    """Return the fewest tokens that spell what was inserted at positions with loops."""
    texts: dict[int, bytes] = {}
    for at, byte in filling:
        if line[1][at]:
            texts[at] = texts.get(at, b"") + bytes([byte])
    return sum(fewest(text, tokens) for text in texts.values())


def fewest(text: bytes, tokens: Sequence[bytes]) -> int:
    found = [0, *[99] * len(text)]
    for stop in range(1, len(text) + 1):
        ends = [len(t) for t in tokens if t and text[:stop].endswith(t)]
        found[stop] = min((found[stop - n] + 1 for n in ends), default=99)
    return found[-1]


NESTED = 'root ::= ("a" root "b")?'


@pytest.mark.parametrize(
    ("text", "can_be_filled"),
    [("a_b_", True), ("_ba_", False), ("aa_b", True), ("b_", False), ("_", True), ("ab", True)],
)
def test_nested_pairs_of_letters(text: str, can_be_filled: bool) -> None:
    """The card's cases of S -> a S b | empty; "_" is a gap of any length."""
    leave, loops = list[int](), [NOTHING]
    for piece in text:
        if piece == "_":
            loops[-1] = BYTES
        else:
            leave.append(ord(piece))
            loops.append(NOTHING)
    table = build_table(parse(NESTED))
    saturation = make_saturation(build_network(table.operations, table.dfas, table.root), COSTS)
    assert saturation.fill(leave, loops, MAX_ITEMS)[0] == (
        Found.FILLED if can_be_filled else Found.EMPTY
    )


def test_a_limit_is_unknown_and_not_empty() -> None:
    table = build_table(parse(NESTED))
    network = build_network(table.operations, table.dfas, table.root)
    line: Line = ([ord("a")] * 20, [NOTHING] * 20 + [BYTES])
    for each in (make_saturation(network, COSTS), ReferenceSaturation(network, COSTS)):
        assert each.fill(*line, 10) == (Found.LIMIT, [])
        assert each.fill(*line, MAX_ITEMS)[0] == Found.FILLED
