"""Users' failed requests, sent again to a real server: each ends as it should."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from benchmarks.cases import REQUEST_S, Case, read_cases, replay
from tests.fixtures.real_server import RealServer

CASES = Path(__file__).parents[3] / "shared" / "cases"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not CASES.exists(), reason="the cases are not on this machine"),
]


@pytest.mark.parametrize("case", read_cases(CASES), ids=lambda case: case.name)
async def test_a_case_ends_as_it_should(case: Case, server: RealServer) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=REQUEST_S) as http:
        outcome = await replay(http, case)
    assert outcome.why == ""
