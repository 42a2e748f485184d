"""Answers of real models at temperature 1 under real schemas: every one valid, none cut off.

The budgets are short for most of them, so many answers end by steering. Schemas that are refused,
or whose shortest instance is longer, are passed over: the server says so with a 400.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.e2e.conftest import DIFFUSION, SERVERS
from tests.fixtures.real_server import MODEL, RealServer

SAMPLE = Path(__file__).parents[3] / "shared/data/maskbench-sample.jsonl.gz"
BUDGETS = {MODEL: 60, DIFFUSION: 96}  # whose tokens are mostly single letters
WANTED = {MODEL: 300, DIFFUSION: 120}  # which spells foreign words, with many draws in vain
AT_ONCE = 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SAMPLE.exists(), reason="the MaskBench sample is not on this machine"),
]


def schemas() -> Iterator[dict[str, Any]]:
    """Yield the sample's schemas that have a valid instance, in a fixed random order."""
    with gzip.open(SAMPLE, "rt") as file:
        rows = [json.loads(line) for line in file]
    random.Random(1).shuffle(rows)
    for row in rows:
        if isinstance(row["schema"], dict) and any(test["valid"] for test in row["tests"]):
            yield row["schema"]


def body(model: str, schema: dict[str, Any], seed: int) -> dict[str, Any]:
    given = {"name": "answer", "schema": schema}
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Answer in JSON with an example."}],
        "response_format": {"type": "json_schema", "json_schema": given},
        "temperature": 1,
        "seed": seed,
        "max_tokens": BUDGETS[model],
    }


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("smollm2", MODEL),
        (DIFFUSION, DIFFUSION),
        pytest.param("vllm", MODEL, marks=pytest.mark.vllm),
    ],
)
async def test_every_answer_is_valid_and_complete(
    request: pytest.FixtureRequest, name: str, model: str
) -> None:
    server: RealServer = request.getfixturevalue(SERVERS[name])
    outputs: list[tuple[dict[str, Any], str]] = []
    refused: dict[str, int] = {}
    pending = iter(schemas())

    async def work(http: httpx.AsyncClient, seed: int) -> None:
        for schema in pending:
            for _ in range(2):
                response = await http.post("/v1/chat/completions", json=body(model, schema, seed))
                if response.status_code == httpx.codes.BAD_REQUEST:
                    code = str(response.json()["error"]["code"])
                    refused[code] = refused.get(code, 0) + 1
                    break
                assert response.status_code == httpx.codes.OK, response.text
                choice = response.json()["choices"][0]
                assert choice["finish_reason"] == "stop", (schema, choice)
                outputs.append((schema, choice["message"]["content"]))
                seed += 1
            if len(outputs) >= WANTED[model]:
                return

    async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
        await asyncio.gather(*(work(http, 1000 * i) for i in range(AT_ONCE)))
    assert len(outputs) >= WANTED[model], refused
    for schema, text in outputs:
        exact = json.loads(json.dumps(schema), parse_float=Decimal)  # 1.15 is a multiple of 0.01
        validator = jsonschema.validators.validator_for(exact, jsonschema.Draft202012Validator)
        validator(exact).validate(json.loads(text, parse_float=Decimal))
