"""Which servers the conformance suite talks to.

The application over a stub pool, in this process; `plait serve` with the default model; the same
with a diffusion model. The environment variables PLAIT_TEST_BASE_URL (http://127.0.0.1:8000) and
PLAIT_TEST_API_KEY name any running server instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from benchmarks.export_hf import export
from plait.server.models.catalog import resolve
from tests.fixtures.real_server import MODEL, RealServer, real_server
from tests.fixtures.running_server import running, stub_app
from tests.fixtures.vllm_worker import vllm_server

EXACT = (
    *("--weights", "fp32", "--kv-cache-bytes", "300MB"),
    *("--max-model-len", "1024", "--max-logprobs", "40"),
)
BASE_URL = os.environ.get("PLAIT_TEST_BASE_URL", "").rstrip("/")
DIFFUSION = "tiny-diffusion"
SERVERS = {"smollm2": "server", DIFFUSION: "diffusion_server", "vllm": "vllm"}  # their fixtures
API_KEY = os.environ.get("PLAIT_TEST_API_KEY", "none")


@pytest.fixture(scope="session")
def server() -> Iterator[RealServer]:
    """The default model, with a small cache and queue so that tests can fill them."""
    with real_server("--max-queue", "40", "--kv-cache-bytes", "100MB") as running_server:
        yield running_server


@pytest.fixture(scope="session")
def diffusion_server() -> Iterator[RealServer]:
    """The model that comes with the package."""
    with real_server("--model", DIFFUSION, "--kv-cache-bytes", "100MB") as running_server:
        yield running_server


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The default model on a vLLM worker; in bf16 near ties depend on what else a pass holds."""
    options = ("--max-queue", "40", "--kv-cache-bytes", "100MB", "--weights", "fp32")
    with vllm_server(tmp_path_factory.mktemp("vllm"), *options) as running_server:
        yield running_server


@pytest.fixture(scope="session")
def exact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that both exact servers read: in bf16, which the default model's file is not."""
    folder = tmp_path_factory.mktemp("model")
    export(resolve(MODEL), folder)
    return folder


@pytest.fixture(scope="session")
def exact_native(exact_folder: Path) -> Iterator[RealServer]:
    """A native worker in fp32, where both kinds of worker give the same tokens."""
    with real_server(str(exact_folder), "--served-name", MODEL, *EXACT) as running_server:
        yield running_server


@pytest.fixture(scope="session")
def exact_vllm(exact_folder: Path) -> Iterator[RealServer]:
    """A vLLM worker of the same model in fp32."""
    finer = ("--max-num-seqs", "16", "--vllm-arg", "block-size=32")  # of the prefix cache
    with vllm_server(exact_folder, *EXACT, *finer) as running_server:
        yield running_server


KINDS = ["smollm2", DIFFUSION, "stub", pytest.param("vllm", marks=pytest.mark.vllm)]


@pytest.fixture(scope="session", params=[BASE_URL] if BASE_URL else KINDS)
def base_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param in SERVERS:
        yield request.getfixturevalue(SERVERS[request.param]).url
    elif request.param != "stub":
        yield request.param
    else:
        with running(stub_app()) as url:
            yield url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """The official client, which validates every answer against its own types."""
    with openai.OpenAI(
        base_url=f"{base_url}/v1",
        api_key=API_KEY,
        max_retries=0,
        _strict_response_validation=True,
    ) as made:
        yield made


@pytest.fixture(scope="session")
def http(base_url: str) -> Iterator[httpx.Client]:
    """A client for what the official one would not send."""
    headers = {"authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=base_url, headers=headers, timeout=120) as made:
        yield made


@pytest.fixture(scope="session")
def model(client: openai.OpenAI) -> str:
    """The first model that the server has."""
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def scoring_model(http: httpx.Client, model: str) -> str:
    """The model, if it writes one token after the other and so gives its prompt logprobs."""
    if "diffusion" in http.get(f"/v1/models/{model}").json():
        pytest.skip("a diffusion model")
    return model


@pytest.fixture(scope="session")
def canvas_model(http: httpx.Client, model: str) -> str:
    """The model, if it fills holes."""
    if "diffusion" not in http.get(f"/v1/models/{model}").json():
        pytest.skip("no diffusion model")
    return model
