"""Arguments for vLLM's engine are checked by vLLM's own parser; in the environment that has it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.fixtures.vllm_worker import PYTHON

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
CASES = {
    "value": ["block-size=32"],
    "flag": ["no-enforce-eager"],
    "unknown": ["no-such-thing=1"],
    "malformed": ["block-size=many"],
    "own": ["async-scheduling"],
    "own option": ["max-model-len=4096"],
    "own, negated": ["no-skip-tokenizer-init"],
}
CODE = """
import json, sys
from plait.server.workers.vllm import environment
environment.prepare()
from plait.server.models.catalog import BadModel
from plait.server.workers.vllm.arguments import parse
found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    try:
        found[name] = parse(arguments)
    except BadModel as error:
        found[name] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def parsed() -> dict[str, Any]:
    command = [str(PYTHON), "-P", "-c", CODE, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_what_is_given_is_passed_on_and_nothing_else(parsed: dict[str, Any]) -> None:
    assert parsed["value"] == {"block_size": 32}
    assert parsed["flag"] == {"enforce_eager": False}


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("unknown", "no-such-thing"),
        ("malformed", "block-size"),
        ("own", "--vllm-arg async-scheduling: plait decides that."),
        ("own option", "plait decides that: give --max-model-len."),
        ("own, negated", "--vllm-arg no-skip-tokenizer-init: plait decides that."),
    ],
)
def test_other_arguments_are_refused_by_name(parsed: dict[str, Any], case: str, told: str) -> None:
    assert told in parsed[case]
