"""The compiled grammar automaton against the reference, and both against what texts there are."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from plait.decoders.constrained.grammar import chars, dfa, regex
from plait.decoders.constrained.grammar.check import left_recursion, prune
from plait.decoders.constrained.grammar.nodes import (
    EMPTY,
    Alternation,
    AnyOrder,
    CharClass,
    Grammar,
    Item,
    Lexeme,
    LiteralText,
    Mark,
    Node,
    Ref,
    Repeat,
    Seq,
    any_order,
)
from plait.decoders.constrained.grammar.regex import Expr
from plait.decoders.constrained.grammar.regex_parser import parse_full_match, parse_search
from plait.decoders.constrained.table import build_automaton, build_table, load_automaton
from plait.kernels import grammar as kernels
from plait.kernels.grammar import DEAD, Automaton, DfaParts
from plait.kernels.grammar.lexeme import LexemeAutomaton
from tests.fixtures.constraint_vocabularies import automaton_of, matches, walk
from tests.fixtures.grammar_automata import LETTERS, compiled, legal, reference_of

PAIRS = [
    parse_full_match(text) for text in ("(ab)*", "a|ab|abc", "[ab]{2,5}c?", "(aa|bbb)*", "é*a")
]


def _random_node(draw: random.Random, depth: int) -> Node:
    kind = draw.randrange(3 if depth == 0 else 9)
    if kind < 3:
        return _random_leaf(draw, kind, depth)
    if kind == 8:
        return _random_any_order(draw, depth)
    parts = tuple(_random_node(draw, depth - 1) for _ in range(draw.randrange(1, 4)))
    if kind == 3:
        least = draw.randrange(3)
        return Repeat(parts[0], least, draw.choice([None, least + draw.randrange(4)]))
    if kind == 4:
        expr = regex.intersection(draw.choice(PAIRS), regex.complement(draw.choice(PAIRS)))
        least = draw.randrange(3)
        found = dfa.lexeme(expr, least, draw.choice([None, least + 2]), is_quoted=False)
        return found if isinstance(found, Lexeme) else EMPTY
    return Seq(parts) if kind < 6 else Alternation(parts)


def _random_leaf(draw: random.Random, kind: int, depth: int) -> Node:
    if kind == 0:
        return LiteralText("".join(draw.choices("abcé", k=draw.randrange(3))))
    if kind == 1:
        return CharClass(chars.of("".join(draw.choices("abcé", k=2))))
    leaves: list[Node] = [LiteralText("c"), Mark(1)]
    return Ref(draw.choice(["x", "y"])) if depth else draw.choice(leaves)


def _random_any_order(draw: random.Random, depth: int) -> Node:
    items = [
        Item(
            _random_node(draw, depth - 1),
            is_required=draw.random() < 0.3,
            may_repeat=draw.random() < 0.2,
        )
        for _ in range(draw.randrange(1, 4))
    ]
    separator = draw.choice([LiteralText("c"), LiteralText("é"), EMPTY])
    least = draw.randrange(3)
    return any_order(items, separator, least, draw.choice([None, least + draw.randrange(3)]))


def _random_grammars(seed: int, count: int) -> Iterator[Grammar]:
    draw = random.Random(seed)
    while count:
        rules = {name: _random_node(draw, 3) for name in ("root", "x", "y")}
        found = prune(Grammar(rules))
        if found is not None and left_recursion(found) is None:
            count -= 1
            yield found


@compiled
@pytest.mark.parametrize("seed", range(6))
def test_both_automata_say_the_same(seed: int) -> None:
    draw = random.Random(seed)
    for grammar in _random_grammars(seed, 60):
        fast, slow = build_automaton(grammar, LETTERS), reference_of(grammar)
        for _ in range(4):
            _walk_both(fast, slow, draw)


def _walk_both(fast: Automaton, slow: Automaton, draw: random.Random) -> None:
    here, there = fast.start, slow.start
    for _ in range(draw.randrange(12)):
        mask = legal(slow, there)
        assert legal(fast, here) == mask
        assert fast.is_accepting(here) == slow.is_accepting(there)
        assert fast.is_final(here) == slow.is_final(there)
        assert fast.forced(here) == slow.forced(there)
        assert fast.num_closing(here) == slow.num_closing(there)
        if not mask:
            break
        token_id = draw.choice(mask)
        here, there = fast.advance(here, token_id), slow.advance(there, token_id)


@pytest.mark.parametrize("make", [automaton_of, reference_of], ids=["served", "reference"])
def test_what_is_accepted_is_what_the_grammar_derives(make: Any) -> None:
    """Against all texts up to a length, derived from the nodes themselves."""
    for grammar in _random_grammars(99, 80):
        have = make(grammar) if make is reference_of else automaton_of(grammar, LETTERS)
        want = _derive(grammar, 3)
        for letters in (text for n in range(4) for text in product("abcé", repeat=n)):
            text = "".join(letters)
            assert matches(have, text.encode()) == (text in want), (str(grammar), text)


def _derive(grammar: Grammar, longest: int) -> set[str]:
    """Return the texts of at most `longest` characters: the least fixed point over the rules."""
    known: dict[str, set[str]] = {name: set() for name in grammar.rules}
    while True:
        wider = {n: _texts(node, known, longest) for n, node in grammar.rules.items()}
        if wider == known:
            return known["root"]
        known = wider


def _leaf_texts(node: LiteralText | CharClass | Lexeme | Mark, longest: int) -> set[str]:
    if isinstance(node, Mark):
        return {""}
    if isinstance(node, LiteralText):
        return {node.value} if len(node.value) <= longest else set()
    if isinstance(node, CharClass):
        return {c for c in "abcé" if chars.contains(node.ranges, ord(c))}
    all_texts = ("".join(t) for n in range(longest + 1) for t in product("abcé", repeat=n))
    return {text for text in all_texts if _holds(node, text)}


def _texts(node: Node, known: dict[str, set[str]], longest: int) -> set[str]:
    if isinstance(node, LiteralText | CharClass | Lexeme | Mark):
        return _leaf_texts(node, longest)
    if isinstance(node, Ref):
        return known[node.name]
    if isinstance(node, Alternation):
        return set().union(*(_texts(item, known, longest) for item in node.items))
    if isinstance(node, Seq):
        return _joined([_texts(item, known, longest) for item in node.items], longest)
    if isinstance(node, AnyOrder):
        return _any_order_texts(node, known, longest)
    item = _texts(node.item, known, longest)
    most = node.least + longest if node.most is None else node.most
    counts = range(node.least, most + 1)
    return set().union(*(_joined([item] * count, longest) for count in counts))


def _any_order_texts(node: AnyOrder, known: dict[str, set[str]], longest: int) -> set[str]:
    """Return the texts of every sequence of items that the node allows."""
    items = [_texts(item.node, known, longest) for item in node.items]
    separator = _texts(node.separator, known, longest)
    required = {i for i, item in enumerate(node.items) if item.is_required}
    most = node.least + len(items) + longest if node.most is None else node.most
    found: set[str] = set()
    rows: dict[tuple[frozenset[int], int], set[str]] = {(frozenset(), 0): {""}}
    while rows:
        ahead: dict[tuple[frozenset[int], int], set[str]] = {}
        for (used, count), texts in rows.items():
            if required <= used and node.least <= count <= most:
                found |= texts
            open_items = (
                i for i, item in enumerate(node.items) if item.may_repeat or i not in used
            )
            for i in open_items if count < most else ():
                parts = [texts, separator, items[i]] if count else [texts, items[i]]
                ahead.setdefault((used | {i}, count + 1), set()).update(_joined(parts, longest))
        rows = {place: texts for place, texts in ahead.items() if texts}
    return found


def _joined(parts: list[set[str]], longest: int) -> set[str]:
    found = {""}
    for part in parts:
        found = {a + b for a in found for b in part if len(a) + len(b) <= longest}
    return found


def _holds(node: Lexeme, text: str) -> bool:
    most = len(text) if node.most is None else node.most
    return node.least <= len(text) <= most and _accepts(node.dfa, text.encode())


def _accepts(parts: DfaParts, text: bytes) -> bool:
    classes, width, following, accepts, _ = parts
    table = np.frombuffer(following, np.int32).reshape(-1, width)
    state = 0
    for byte in text:
        state = int(table[state, classes[byte]])
        if state < 0:
            return False
    return bool(accepts[state])


EXPRESSIONS = [
    regex.intersection(parse_search("b"), parse_full_match("[ab]{0,4}")),
    regex.intersection(parse_full_match("[a-z€]*"), regex.complement(parse_search("ab|€"))),
    regex.intersection(
        parse_search("a$"), regex.intersection(parse_search("^b"), parse_search("é"))
    ),
    regex.complement(parse_full_match("(a|b)*c{2,3}")),
    regex.union(
        [parse_full_match("a{0,3}b"), parse_full_match("a{2,7}b"), parse_full_match("a{9}b")]
    ),
    regex.intersection(parse_full_match(".{0,6}a.{0,6}"), parse_full_match(".{0,6}b.{0,6}")),
    parse_full_match('["\\\\\n\u0001a]*'),
    parse_full_match("[\u00a0-\u0fff\U0001f600-\U0001f64f]+"),
]


@compiled
@pytest.mark.parametrize("is_quoted", [False, True])
@pytest.mark.parametrize("expr", EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_expressions_and_both_their_automata_agree(expr: Expr, *, is_quoted: bool) -> None:
    fast, slow = (
        dfa.determinise(expr, is_quoted),
        dfa.determinise_reference(expr, is_quoted=is_quoted),
    )
    assert fast is not None and slow is not None
    draw = random.Random(7)
    alphabet = 'abcé€"\\\n\u0001z😀\u0100'
    for _ in range(3000):
        text = "".join(draw.choices(alphabet[: draw.randrange(2, 13)], k=draw.randrange(9)))
        want = regex.matches(expr, text)
        spelled = _quoted(text) if is_quoted else text
        assert _accepts(fast, spelled.encode()) == want
        assert _accepts(slow, spelled.encode()) == want


def _quoted(text: str) -> str:
    short = {'"': '\\"', "\\": "\\\\", "\n": "\\n"}
    return "".join(short.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in text)


def test_an_expression_without_texts_has_no_automaton() -> None:
    expr = regex.intersection(parse_full_match("a+b"), parse_full_match("b*a"))

    assert (
        dfa.determinise(expr, False) is None
        and dfa.determinise_reference(expr, is_quoted=False) is None
    )


def test_what_is_too_much_work_is_refused() -> None:
    blowing_up = regex.intersection(parse_full_match("[ab]*a[ab]{40}"), parse_search("b"))

    with pytest.raises(regex.TooManyStates):
        dfa.determinise(blowing_up, False)


LENGTHS = ["[ab]*", "(ab)*", "(aaa|bb)+", "a?(bbbb)*", "abc|a", "(é|ab)*é"]


@pytest.mark.parametrize("pattern", LENGTHS)
@pytest.mark.parametrize("window", [(0, 4), (3, 3), (2, None), (4, 5), (4, 9), (0, 0)])
def test_lengths_are_counted_in_characters(pattern: str, window: tuple[int, int | None]) -> None:
    """Legal exactly where some text of the right length goes on so: gaps and all."""
    least, most = window
    node = dfa.lexeme(parse_full_match(pattern), least, most, is_quoted=False)
    texts = ["".join(t) for n in range(6) for t in product("abcé", repeat=n)]
    texts += ["".join(t) for n in range(6, 10) for t in product("ab", repeat=n)]
    limit = 9 if most is None else most
    want = {t.encode() for t in texts if re.fullmatch(pattern, t) and least <= len(t) <= limit}
    if not want:
        assert not isinstance(node, Lexeme)
        return
    have = automaton_of(Grammar({"root": node}), LETTERS)

    for text in texts:
        assert matches(have, text.encode()) == (text.encode() in want)
    for text in texts[:1000] if most is not None and most <= 5 else ():  # all there are
        alive = any(full.startswith(text.encode()) for full in want)
        assert (walk(have, text.encode()) != DEAD) == alive


@compiled
@pytest.mark.parametrize("pattern", [*LENGTHS, "a{3}|b{7}|(cc)*"])
def test_missing_characters_are_those_of_the_oracle(pattern: str) -> None:
    parts = dfa.determinise(parse_full_match(pattern), False)
    assert parts is not None
    for least, most in product(range(12), [-1, *range(12)]):
        want = LexemeAutomaton(parts, least, most).missing(0, 0) >= 0
        assert kernels.extension().is_possible(parts, least, most) == want


@pytest.mark.parametrize("most", [50, 400, 65_536])
@pytest.mark.parametrize("pattern", ["\\S", "[A-Z]", "^([0-9a-f]{2})+$", "^(a|bc)*x(a|bc)*$"])
def test_a_length_costs_no_states(pattern: str, most: int) -> None:
    node = dfa.lexeme(parse_search(pattern), 1, most, is_quoted=True)

    assert isinstance(node, Lexeme) and len(node.dfa[3]) < 80
    assert (node.least, node.most) == (1, most)


def test_far_from_its_ends_a_count_does_not_matter() -> None:
    """One mask serves all counts that no token can exhaust; near the ends each has its own."""
    counted = dfa.lexeme(parse_search("a"), 100, 200, is_quoted=False)
    have = automaton_of(Grammar({"root": counted}), LETTERS)
    for count in (0, 30, 99, 100, 150, 197, 198, 199, 200):
        state = walk(have, b"b" * (count - 1) + b"a" if count else b"")
        want = [
            token_id
            for token_id, spelling in enumerate(LETTERS.token_bytes)
            if LETTERS.is_text(token_id) and walk(have, spelling, state) != DEAD
        ]
        assert legal(have, state) == want


@pytest.mark.parametrize("make", [automaton_of, reference_of], ids=["served", "reference"])
def test_nothing_goes_on_behind_a_dead_byte(make: Any) -> None:
    have = make(Grammar({"root": LiteralText("ab")}))
    state = have.step(have.start, ord("x"))

    assert state == DEAD
    with pytest.raises(IndexError):
        have.step(state, ord("a"))


def test_listed_texts_that_begin_with_each_other() -> None:
    words = ["a", "ab", "abc", "b", "é"]
    grammar = Grammar(
        {"root": Seq((Alternation(tuple(map(LiteralText, words))), LiteralText("c")))}
    )
    have = load_automaton(build_table(grammar), LETTERS)

    accepted = {
        text
        for n in range(5)
        for letters in product("abcé", repeat=n)
        if matches(have, (text := "".join(letters)).encode())
    }
    assert accepted == {word + "c" for word in words}
