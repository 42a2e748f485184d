"""The compile service: real child processes over a tiny tokenizer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from plait.decoders.constrained.load import ConstraintLoader
from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec, JsonStyle
from plait.decoders.constrained.vocabulary import make_vocabulary
from plait.kernels import grammar as kernels
from plait.server.errors import BadRequest, NotFound
from plait.server.models.catalog import ModelFiles
from plait.server.pool.compile_service.client import COMMAND
from plait.server.pool.compile_service.compiler import CompileService
from plait.server.pool.compile_service.messages import ForkServerConfig, frame
from plait.server.prompt.tokenizer import load_tokenizer
from plait.server.settings import CompileSettings, LimitSettings
from tests.fixtures.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEADLINE_S = 2.0
SHORT_DEADLINE_S = 0.08  # ten times what a small schema needs
NUM_RULES = 5000
SLOW_GRAMMAR = ConstraintSpec(  # takes four times that deadline
    "grammar",
    f"root ::= {' | '.join(f'r{i}' for i in range(NUM_RULES))}\n"
    + "".join(
        f'r{i} ::= [a-z]{{1,{i % 50 + 1}}} "x{i}" r{7 * i % NUM_RULES}?\n' for i in range(NUM_RULES)
    ),
)
OBJECT = ConstraintSpec("json_schema", '{"type": "object", "required": ["a"]}')


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return ModelFiles("hf", write_tiny_model(tmp_path_factory.mktemp("tiny")), "tiny")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(model: ModelFiles) -> AsyncIterator[CompileService]:
    settings = CompileSettings(deadline_s=DEADLINE_S)
    service = CompileService(settings, LimitSettings(max_schema_bytes=10_000))
    await service.start({"tiny": load_tokenizer(model)})
    yield service
    await service.close()


def _spec(number: int) -> ConstraintSpec:
    """Return a spec that no other test uses."""
    return ConstraintSpec("json_schema", json.dumps({"const": number}))


async def test_what_comes_back_can_be_matched(service: CompileService, model: ModelFiles) -> None:
    tokenizer = load_tokenizer(model)
    loader = ConstraintLoader(make_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids))

    have = await service.compile("tiny", OBJECT)

    constraint = loader.load(have.key, have.table)
    assert constraint.min_tokens() == have.min_tokens
    for token_id in tokenizer.encode('{"a":[true]}'):
        assert constraint.accept_token(token_id)
    assert constraint.is_terminated()


async def test_the_same_constraint_is_compiled_once(service: CompileService) -> None:
    before = service.stats()
    spaced = ConstraintSpec("json_schema", '{ "const" : 1 }')

    first = await asyncio.gather(*(service.compile("tiny", _spec(1)) for _ in range(5)))
    again = await service.compile("tiny", spaced)

    assert all(have is first[0] for have in [*first, again])
    assert service.stats().compiled == before.compiled + 1
    assert service.stats().cache_hits == before.cache_hits + 1


async def test_a_refusal_names_pointer_and_keyword_and_is_remembered(
    service: CompileService,
) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": 1}}}
    before = service.stats()
    for _ in range(2):
        with pytest.raises(BadRequest) as have:
            await service.compile("tiny", ConstraintSpec("json_schema", json.dumps(schema)))
        assert have.value.message.startswith("/properties/x: keyword 'uniqueItems'")

    assert service.stats().refused == before.refused + 1


async def test_a_schema_is_compiled_with_the_operators_documents_and_style(
    service: CompileService, model: ModelFiles
) -> None:
    library = {"address.json": {"type": "object", "properties": {"zip": {"type": "string"}}}}
    settings = CompileSettings(schemas=library, json_style=JsonStyle(objects="open"))
    own = CompileService(settings, LimitSettings())
    await own.start({"tiny": load_tokenizer(model)})
    schema = json.dumps({"$ref": "address.json"})
    asked = ConstraintSpec("json_schema", schema)
    closed = ConstraintSpec("json_schema", schema, style=JsonStyle(objects="closed"))

    try:
        by_default, by_request = [await own.compile("tiny", each) for each in (asked, closed)]
    finally:
        await own.close()

    assert by_default.table != by_request.table
    assert by_default.key != by_request.key
    with pytest.raises(BadRequest, match="lies outside the schema"):
        await service.compile("tiny", asked)


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        (ConstraintSpec("json_schema", "{"), "not valid JSON"),
        (ConstraintSpec("regex", "a" * 10_001), "larger than 10000 bytes"),
        (ConstraintSpec("grammar", "root ::= x"), "line 1"),
    ],
)
async def test_malformed_constraints_are_the_clients_fault(
    spec: ConstraintSpec, want: str, service: CompileService
) -> None:
    with pytest.raises(BadRequest, match=want):
        await service.compile("tiny", spec)


async def test_unknown_models_are_not_found(service: CompileService) -> None:
    with pytest.raises(NotFound):
        await service.compile("other", OBJECT)


async def test_what_takes_long_dies_at_its_deadline_while_others_compile(
    model: ModelFiles,
) -> None:
    settings = CompileSettings(deadline_s=SHORT_DEADLINE_S)
    service = CompileService(settings, LimitSettings())
    await service.start({"tiny": load_tokenizer(model)})
    try:
        slow = asyncio.create_task(service.compile("tiny", SLOW_GRAMMAR))
        compiled = 0
        while not slow.done():
            await service.compile("tiny", _spec(100 + compiled))
            compiled += 1
        with pytest.raises(BadRequest, match=r"does not compile within 0\.08 s"):
            await slow
        assert compiled > 1
        assert service.stats().timeouts == 1
    finally:
        await service.close()


async def test_a_dead_fork_server_is_replaced(service: CompileService) -> None:
    assert service._server is not None
    os.kill(service._server.pid, signal.SIGKILL)
    await service._server.wait_gone()

    assert (await service.compile("tiny", _spec(2))).min_tokens > 0


async def test_a_client_that_leaves_leaves_the_compile_to_others(service: CompileService) -> None:
    leaver = asyncio.create_task(service.compile("tiny", _spec(3)))
    stayer = asyncio.create_task(service.compile("tiny", _spec(3)))
    await asyncio.sleep(0)
    leaver.cancel()

    assert (await stayer).min_tokens > 0


async def test_a_memory_bomb_costs_only_its_child(model: ModelFiles) -> None:
    schema = {"enum": ["x" * 200 + str(number) for number in range(1000)]}
    bomb = ConstraintSpec("json_schema", json.dumps(schema))
    settings = CompileSettings(deadline_s=60.0, memory_bytes=2**20)
    service = CompileService(settings, LimitSettings())
    await service.start({"tiny": load_tokenizer(model)})
    try:
        with pytest.raises(BadRequest, match="memory"):
            await service.compile("tiny", bomb)
        assert (await service.compile("tiny", _spec(4))).min_tokens > 0
    finally:
        await service.close()


async def test_close_leaves_no_process(model: ModelFiles) -> None:
    service = CompileService(CompileSettings(), LimitSettings())
    await service.start({"tiny": load_tokenizer(model)})
    assert service._server is not None
    pid = service._server.pid

    await service.close()

    assert not Path(f"/proc/{pid}").exists()


async def test_the_fork_server_is_small_single_threaded_and_without_torch(
    service: CompileService,
) -> None:
    assert service._server is not None
    process = psutil.Process(service._server.pid)
    mapped = {Path(region.path).name for region in process.memory_maps()}

    assert any(name.startswith("_grammar.") for name in mapped) == kernels.available()
    assert not any(name.startswith("libtorch") for name in mapped)
    assert process.num_threads() == 1, "a fork takes one thread along, and the others' locks"
    assert process.memory_info().rss < 80 * 2**20


async def test_a_server_that_was_stopped_while_it_loaded_is_no_fault() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frame(ForkServerConfig([], ConstraintLimits(), 2**30)))
        ours.close()
        done = subprocess.run(
            COMMAND, stdin=theirs.fileno(), capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
