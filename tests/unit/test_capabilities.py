"""What a kind of worker has not is refused before it is queued, and who has it is said."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from plait.decoders.contract.registry import LACKING, methods
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.server.api.app import create_app
from plait.server.engine.services import check_drafter
from plait.server.models.catalog import BadModel
from plait.server.settings import ApiSettings
from plait.server.telemetry.telemetry import Telemetry
from plait.server.wire.capabilities import CAPABILITIES, KINDS, who_has
from plait.server.wire.messages import ModelInfo
from tests.fixtures.capability_probes import PROBES, filled
from tests.fixtures.running_server import QUIET
from tests.fixtures.stub_pool import INFO, MODEL, StubModel, StubPool

LACKS = [
    pytest.param(name, capability, id=f"{name}-{capability}")
    for name, kind in KINDS.items()
    for capability in CAPABILITIES
    if capability not in kind.has
]


def info_of(kind: str) -> ModelInfo:
    """Return what a worker of a kind tells that has nothing of what it may have."""
    spec = DiffusionSpec(258, (255,), "block", 16) if kind == "diffusion" else None
    return msgspec.structs.replace(INFO, capabilities=[*KINDS[kind].has], diffusion=spec)


def test_every_capability_has_a_probe() -> None:
    assert PROBES.keys() == CAPABILITIES.keys()


def test_no_kind_has_what_is_not_in_the_table() -> None:
    for kind in KINDS.values():
        assert {*kind.has, *kind.may_have} <= CAPABILITIES.keys()
        assert not {*kind.has} & {*kind.may_have}


def test_methods_need_what_is_in_the_table_or_weights_of_their_own() -> None:
    needed = {need for method in methods().values() for need in method.needs}
    heads = {name for (kind, name), _ in methods().items() if kind == "drafter"}
    assert needed <= CAPABILITIES.keys() | heads
    assert LACKING.keys() <= CAPABILITIES.keys()


@pytest.mark.parametrize(("kind", "capability"), LACKS)
async def test_what_a_worker_lacks_is_refused_before_it_is_queued(
    kind: str, capability: str
) -> None:
    pool = StubPool(served=[StubModel(info=info_of(kind))])
    app = create_app(ApiSettings(), pool, Telemetry(QUIET))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for need in PROBES[capability].needs:
            have = await client.post(need.path, json=filled(MODEL, need.path, need.body))
            error = have.json()["error"]
            assert (have.status_code, error["param"]) == (400, need.param), error
            assert error["type"] == "invalid_request_error"
            assert error["code"] == "unsupported_parameter"
            assert "It takes a native worker" in error["message"]
    assert not pool.requests and not pool.tasks and not pool.specs


def test_a_sentence_names_those_that_have_it() -> None:
    assert who_has("prompt_logprobs") == (
        "It takes a native worker with an autoregressive model or a vllm worker."
    )
    assert who_has("shadow") == "It takes a native worker with a diffusion model."
    assert who_has("") == ""


def test_an_operators_drafter_is_refused_alike() -> None:
    with pytest.raises(BadModel, match=r"aded needs .* It takes a native worker with"):
        check_drafter("aded", [*KINDS["vllm"].has])
