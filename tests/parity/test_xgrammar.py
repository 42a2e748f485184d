"""Masks of a released grammar engine and ours, over the same grammars, agree on every token."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
import xgrammar

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.spec import ConstraintKind, ConstraintLimits, ConstraintSpec
from tests.fixtures.constraint_vocabularies import BYTES_AND_PIECES, EOS, automaton_of

WORDS = 9
NESTED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["ab", "abc", 1, None, [True]]},
        "tags": {"type": "array", "items": {"type": "number"}, "maxItems": 3},
        "more": {"type": "object", "additionalProperties": {"type": "boolean"}},
    },
    "required": ["name", "tags"],
}
SPECS: list[tuple[ConstraintKind, str]] = [
    ("json_object", ""),
    ("json_schema", json.dumps(NESTED)),
    ("regex", "(ab|abc)*c{0,7}[€-₯]?"),
    ("grammar", 'root ::= "[" root* "]" | [a-c]{1,3}'),
    ("choice", '["yes", "no", "not sure"]'),
]


def _bits(row: list[int]) -> list[int]:
    return [32 * i + b for i, word in enumerate(row) for b in range(32) if word >> b & 1]


@pytest.mark.parametrize(("kind", "text"), SPECS)
def test_masks_are_those_of_xgrammar(kind: ConstraintKind, text: str) -> None:
    grammar = lower(ConstraintSpec(kind, text), ConstraintLimits(max_whitespace=2))
    spelled = [
        t if BYTES_AND_PIECES.is_text(i) else b""
        for i, t in enumerate(BYTES_AND_PIECES.token_bytes)
    ]
    info = xgrammar.TokenizerInfo(spelled, xgrammar.VocabType.RAW, stop_token_ids=[EOS])
    compiled = xgrammar.GrammarCompiler(info, max_threads=1).compile_grammar(str(grammar))
    draw = random.Random(text)
    for _ in range(6):
        matcher, automaton = xgrammar.GrammarMatcher(compiled), automaton_of(grammar)
        state = automaton.start
        for _ in range(draw.randrange(25)):
            want = torch.full((1, WORDS), -1, dtype=torch.int32)
            matcher.fill_next_token_bitmask(want, 0)
            have = np.zeros(WORDS, np.int32)
            automaton.write_mask(state, have)
            legal = _bits(have.tolist())
            known = [t for t in _bits(want[0].tolist()) if t < len(spelled)]
            assert [t for t in known if t != EOS] == legal
            assert (EOS in known) == automaton.is_accepting(state)
            if not legal:
                break
            token_id = draw.choice(legal)
            state = automaton.advance(state, token_id)
            assert matcher.accept_token(token_id)
