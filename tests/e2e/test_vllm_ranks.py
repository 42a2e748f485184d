"""A vLLM worker on several devices, here processes: the tokens of one device, and no rank alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import EXACT
from tests.e2e.test_vllm_worker import answers, bodies
from tests.fixtures.real_server import MODEL, RealServer
from tests.fixtures.vllm_worker import vllm_server

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
# The model has 9 heads, 3 of keys and values, and 30 layers.
DIVISIONS = {
    "layers' parts": ("--tensor-parallel-size", "3"),
    "layers": ("--pipeline-parallel-size", "2", "--drafter", "off"),
}


@pytest.fixture(scope="module", params=DIVISIONS)
def divided(request: pytest.FixtureRequest, exact_folder: Path) -> Iterator[RealServer]:
    options = ("--max-num-seqs", "8", *DIVISIONS[request.param])
    with vllm_server(exact_folder, *EXACT, *options) as server:
        yield server


def ranks(server: RealServer) -> list[psutil.Process]:
    """Return the processes of the worker's other ranks."""
    spawned = server.worker().children(recursive=True)
    return [each for each in spawned if "spawn_main" in " ".join(each.cmdline())]


async def test_tokens_are_those_of_a_native_worker(
    divided: RealServer, exact_native: RealServer, request: pytest.FixtureRequest
) -> None:
    requests = bodies(24, seed=3)
    want = await answers(exact_native, requests, at_once=8)
    assert await answers(divided, requests, at_once=8) == want
    named = requests[0] | {"decoding": {"drafter": "suffix"}}
    async with httpx.AsyncClient(base_url=divided.url, timeout=120) as client:
        answer = await client.post("/v1/chat/completions", json=named)
    drafted = divided.metric("vllm:spec_decode_num_draft_tokens_total")
    if "--drafter" not in DIVISIONS[request.node.callspec.params["divided"]]:
        assert answer.status_code == httpx.codes.OK
        assert drafted > 0, "nothing was drafted"
    else:
        assert answer.status_code == httpx.codes.BAD_REQUEST
        assert answer.json()["error"]["param"] == "decoding.drafter"
        assert not drafted


async def test_a_rank_that_dies_takes_the_worker_with_it_and_all_come_back(
    divided: RealServer,
) -> None:
    message = {"role": "user", "content": "Tell a long story."}
    body = {"model": MODEL, "messages": [message], "max_tokens": 400, "ignore_eos": True}
    before = ranks(divided)
    async with httpx.AsyncClient(base_url=divided.url, timeout=120) as client:
        asked = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await asyncio.to_thread(
            divided.wait_until, lambda: divided.metric("vllm:num_requests_running") == 1
        )
        before[0].kill()
        failed = await asked
        assert failed.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert int(failed.headers["retry-after"]) >= 1
        await asyncio.to_thread(divided.wait_ready)
        again = await client.post("/v1/chat/completions", json=body | {"max_tokens": 4})
        assert again.status_code == httpx.codes.OK
    gone, _ = psutil.wait_procs(before, timeout=10)
    assert len(gone) == len(before), "a rank outlives its worker"
    assert len(ranks(divided)) == len(before)
