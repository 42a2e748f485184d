"""Law 3 from the other side: every text that a grammar derives is valid, says a validator.

The validator (jsonschema-rs, formats asserted) shares no code with the reader of schemas.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plait.decoders.constrained.compile import lower
from plait.decoders.constrained.schema.formats import STANDARD
from plait.decoders.constrained.spec import ConstraintError, ConstraintLimits, ConstraintSpec
from plait.kernels.grammar import DEAD, Automaton
from tests.fixtures.constraint_vocabularies import automaton_of, spell

SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/maskbench-sample.jsonl.gz"
EVERY = 8  # schemas of the sample between two that are tried here


def _derive(schema: Any, draw: random.Random, count: int) -> Iterator[str]:
    """Yield random texts of a schema's grammar: some random bytes, then the cheapest end."""
    spec = ConstraintSpec("json_schema", json.dumps(schema))
    automaton = automaton_of(lower(spec, ConstraintLimits()))
    for _ in range(count):
        state = automaton.start
        text = bytearray()
        for _ in range(draw.randrange(300)):
            byte = _next_byte(automaton, state, draw)
            if byte < 0:
                break
            text.append(byte)
            state = automaton.step(state, byte)
        yield (text + spell(automaton.closing_tokens(state))).decode()


def _next_byte(automaton: Automaton, state: int, draw: random.Random) -> int:
    """Return a legal byte, often the one that leads to the end; -1: nothing can follow."""
    if automaton.is_final(state):
        return -1
    if draw.random() < 0.3 and (closing := spell(automaton.closing_tokens(state))):
        return closing[0]
    return draw.choice([b for b in range(256) if automaton.step(state, b) != DEAD])


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_texts_of_a_format_have_it(name: str) -> None:
    schema = {"type": "string", "format": name}
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)

    bad = [
        t for t in _derive(schema, random.Random(name), 60) if not validator.is_valid(json.loads(t))
    ]

    assert bad == []


TEXTS = ["", "a", "a-b", "2024-01-01", "1.2.3.4", "12:00:00Z", 7, 1.0, True, None, [1], {"a": 1}]
PATTERNS = ["^[a-z]*$", r"\d", "^(?!a)", r"^(?=.*\d)[a-z\d]+$", "^(?!.*--)[a-z-]{1,8}$", "(?<!-)$"]
# One of a library's own and one that nobody knows are among them.
NAMES = [*sorted(set(STANDARD) - {"regex", "uri-template"}), "nanoid", "slug"]
said = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", ["string", "integer"], ["string", "null"]]),
        "format": st.sampled_from(NAMES),
        "pattern": st.sampled_from(PATTERNS),
        "minLength": st.integers(0, 4),
        "maxLength": st.integers(3, 40),
        "enum": st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6),
        "multipleOf": st.sampled_from([2, 3, 0.5]),
    },
)
text_schemas = st.recursive(
    said,
    lambda inner: st.builds(
        lambda base, keyword, parts: {
            **base,
            keyword: parts[0] if keyword in ("not", "if", "then", "else") else parts,
        },
        inner,
        st.sampled_from(["not", "anyOf", "oneOf", "allOf", "if", "then", "else"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(text_schemas, st.integers(0, 2**20))
def test_texts_of_combined_formats_and_patterns_are_valid(schema: Any, seed: int) -> None:
    try:
        texts = list(_derive(schema, random.Random(seed), 3))
    except ConstraintError:
        assume(False)
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)

    assert [text for text in texts if not validator.is_valid(json.loads(text))] == []


def _sample() -> Iterator[tuple[str, Any]]:
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as lines:
        for index, line in enumerate(lines):
            if index % EVERY == 0:
                row = json.loads(line)
                yield row["id"], row["schema"]


@pytest.mark.slow
def test_texts_of_schemas_in_the_wild_are_valid() -> None:
    if not SAMPLE.exists():
        pytest.skip("the sample is not beside the repository; it has no licence to be inside")
    draw = random.Random(0)
    bad, tried = [], 0
    for name, schema in _sample():
        try:
            texts = list(_derive(schema, draw, 4))
            validator = jsonschema_rs.validator_for(schema, validate_formats=True)
        except (ConstraintError, jsonschema_rs.ValidationError):
            continue
        tried += len(texts)
        bad += [(name, text) for text in texts if not validator.is_valid(json.loads(text))]

    assert tried > 400
    assert bad == []
