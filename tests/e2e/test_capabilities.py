"""Every cell of the table of capabilities in docs/workers.md, on a worker of its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx
import pytest

from plait.server.wire.capabilities import CAPABILITIES, KINDS
from tests.fixtures.capability_probes import PROBES, Client
from tests.fixtures.real_server import RealServer, real_server

SERVERS = {"autoregressive": "server", "diffusion": "diffusion_server", "vllm": "vllm"}
# What it takes to have what a kind may have, where the usual server of the kind has it not.
OPTIONS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("autoregressive", "draft_model"): ("--draft-model", "self:8"),
}
CELLS = [
    pytest.param(
        kind, capability, id=f"{kind}-{capability}", marks=[pytest.mark.vllm] * (kind == "vllm")
    )
    for kind in KINDS
    for capability in CAPABILITIES
]


@contextmanager
def connected(server: RealServer) -> Iterator[tuple[Client, list[str]]]:
    """Connect to a server; yield the client, and what its model's worker says it has."""
    with httpx.Client(base_url=server.url, timeout=120) as http:
        (model,) = http.get("/v1/models").json()["data"]
        yield Client(http, model["id"]), model["capabilities"]


@pytest.mark.parametrize(("kind", "capability"), CELLS)
def test_a_worker_has_what_the_table_says(
    kind: str, capability: str, request: pytest.FixtureRequest
) -> None:
    server: RealServer = request.getfixturevalue(SERVERS[kind])
    with connected(server) as (client, listed):
        if capability in listed:
            assert capability in KINDS[kind].has + KINDS[kind].may_have
            PROBES[capability].works(client)
            return
        assert capability not in KINDS[kind].has
        assert capability not in KINDS[kind].may_have or (kind, capability) in OPTIONS
        for need in PROBES[capability].needs:
            have = client.send(need.path, need.body)
            error = have.json()["error"]
            assert (have.status_code, error["param"]) == (400, need.param), error
            assert error["code"] == "unsupported_parameter"
            assert "It takes a native worker" in error["message"]
    assert server.is_idle()


@pytest.mark.parametrize(("kind", "capability"), OPTIONS)
def test_what_options_decide(kind: str, capability: str) -> None:
    assert capability in KINDS[kind].may_have
    options = (*OPTIONS[kind, capability], "--kv-cache-bytes", "50MB", "--max-model-len", "512")
    with real_server(*options) as server, connected(server) as (client, listed):
        assert capability in listed
        PROBES[capability].works(client)
