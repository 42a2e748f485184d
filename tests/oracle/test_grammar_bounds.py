"""What a grammar may cost: work of a byte and of a mask, memory; and what is kept all the same."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from plait.decoders.constrained import matcher
from plait.decoders.constrained.grammar import regex
from plait.decoders.constrained.grammar.gbnf import parse
from plait.decoders.constrained.grammar.nodes import (
    Alternation,
    CharClass,
    Grammar,
    LiteralText,
    Repeat,
)
from plait.decoders.constrained.grammar.regex_parser import parse_full_match
from plait.decoders.constrained.matcher import GrammarConstraint, LoadedGrammar, TooAmbiguous
from plait.decoders.constrained.table import build_table, load_automaton
from plait.kernels.grammar import DEAD
from tests.fixtures.constraint_vocabularies import automaton_of, walk
from tests.fixtures.grammar_automata import LETTERS, compiled, legal


def test_an_automaton_begins_anew_when_it_remembers_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = build_table(
        Grammar({"root": Repeat(Alternation((LiteralText("ab"), LiteralText("abc"))), 0, None)})
    )
    loaded = LoadedGrammar(table, LETTERS)
    constraint = GrammarConstraint(loaded)
    for token_id in (6, 7, 6):
        assert constraint.accept_token(token_id)
    want = (constraint.min_tokens(), constraint.is_accepting(), constraint.accept_token(2))
    before = loaded.automaton()

    monkeypatch.setattr(matcher, "MAX_AUTOMATON_BYTES", before.num_bytes - 1)
    monkeypatch.setattr(matcher, "MIN_MASKS", 0)
    assert constraint.fork().is_accepting() == constraint.is_accepting()
    monkeypatch.undo()

    assert loaded.automaton() is not before
    constraint.rollback(1)
    assert (constraint.min_tokens(), constraint.is_accepting(), constraint.accept_token(2)) == want


@compiled
def test_a_mask_that_is_too_much_work_keeps_a_way_to_the_end() -> None:
    """Fewer tokens, all of them legal, the same whatever was computed before."""
    text = "(" * 3 + "[a-cé]{0,400}" + "){0,400}" * 3 + "b"
    table = build_table(Grammar({"root": regex.structure(parse_full_match(text), CharClass)}))
    have, other = load_automaton(table, LETTERS), load_automaton(table, LETTERS)
    mask = legal(have, have.start)
    behind = walk(other, b"abc")
    legal(other, behind)

    assert legal(other, other.start) == mask
    assert have.closing_tokens(have.start)[0] in mask
    assert all(have.advance(have.start, token_id) != DEAD for token_id in mask)
    assert len(mask) < sum(map(LETTERS.is_text, range(len(LETTERS.token_bytes))))


@compiled
def test_where_each_byte_is_ambiguous_a_mask_is_bounded_and_depends_on_the_text_alone() -> None:
    """Each rule is a word or two of the next rule, so every word can be split in all ways."""
    words = ["".join(letters) for n in range(1, 7) for letters in product("abc", repeat=n)]
    rules = [f'r{i} ::= r{i + 1} r{i + 1} | "{word}"' for i, word in enumerate(words)]
    grammar = parse("\n".join(["root ::= r0", *rules, f'r{len(words)} ::= "é"']))
    have, other = automaton_of(grammar, LETTERS), automaton_of(grammar, LETTERS)
    legal(other, other.start)  # other things are remembered first
    legal(other, walk(other, b"cab"))
    state = walk(have, b"abcabcabca")
    before = have.num_bytes
    mask = legal(have, state)

    assert mask == legal(other, walk(other, b"abcabcabca"))
    assert have.closing_tokens(state)[0] in mask
    assert have.num_bytes - before < 128 * 2**20


@compiled
def test_an_end_is_kept_where_alternatives_double_without_end() -> None:
    rules = [f'r{i} ::= r{i + 1} "a" | r{i + 1} "bc" | r{i + 1} "c"' for i in range(40)]
    grammar = parse("\n".join(['root ::= "a" r0', *rules, 'r40 ::= "b"']))
    have = automaton_of(grammar, LETTERS)
    state = walk(have, b"a")
    left = have.num_closing(state)

    for token_id in have.closing_tokens(state):
        assert token_id in legal(have, state)
        state = have.advance(state, token_id)
        assert state != DEAD and have.num_closing(state) <= left - 1
        left = have.num_closing(state)
    assert have.is_accepting(state)


@compiled
def test_a_grammar_that_fills_its_automaton_with_every_mask_ends_its_requests() -> None:
    words = ["".join(letters) for n in range(1, 7) for letters in product("abc", repeat=n)]
    rules = [f'r{i} ::= r{i + 1} r{i + 1} | "{word}"' for i, word in enumerate(words)]
    grammar = parse("\n".join(["root ::= r0", *rules, f'r{len(words)} ::= "é"']))
    loaded = LoadedGrammar(build_table(grammar), LETTERS)
    constraint, bits = GrammarConstraint(loaded), torch.zeros((1, 1), dtype=torch.int32)

    with pytest.raises(TooAmbiguous, match="too ambiguous"):
        for token_id in (0, 1, 2) * 20:
            constraint.fill_bitmask(bits, 0)
            assert constraint.accept_token(token_id)
    with pytest.raises(TooAmbiguous):
        constraint.fork().min_tokens()
