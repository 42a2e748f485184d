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
