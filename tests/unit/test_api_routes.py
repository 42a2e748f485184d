"""Finding a route: what base URLs make of paths, HEAD, what is not there, pages for people."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.server.api.app import create_app
from plait.server.api.paths import route_path
from plait.server.settings import ApiSettings, TelemetrySettings
from plait.server.telemetry.telemetry import Telemetry
from tests.fixtures.running_server import QUIET, running, stub_app
from tests.fixtures.stub_pool import StubModel, StubPool

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "seed": 1}
GETS = ("/", "/docs", "/openapi.json", "/health", "/ready", "/metrics", "/version", "/v1/models")


async def send(method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request with a path as it stands: clients would mend some."""
    app = options.pop("app", None) or stub_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        url = httpx.URL("http://test").copy_with(raw_path=path.encode())
        return await client.request(method, url, **options)


@given(names=st.lists(st.sampled_from(["v1", "models", "a.b", "..", "x y"]), max_size=4))
def test_slashes_between_names_are_all_that_counts(names: list[str]) -> None:
    want = "/" + "/".join(names)
    assert route_path(want) == want
    assert route_path("/" + want.replace("/", "///") + "//") == want


@pytest.mark.parametrize("path", [f"{CHAT}/", f"/{CHAT}", "//v1//chat///completions//"])
async def test_a_base_urls_slashes_do_not_matter(path: str) -> None:
    have = await send("POST", path, json=HELLO)
    assert have.status_code == 200
    want = await send("POST", CHAT, json=HELLO)
    assert have.json()["choices"] == want.json()["choices"]


async def test_the_official_client_takes_a_base_url_with_slashes() -> None:
    openai = pytest.importorskip("openai")
    with running(stub_app()) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}//v1//", api_key="x") as client:
            assert [model.id async for model in client.models.list()] == ["stub"]


@pytest.mark.parametrize("path", ["/health/", "//health"])
async def test_a_probe_stays_open_however_it_is_written(path: str) -> None:
    app = stub_app(settings=ApiSettings(api_keys=("k",)))
    assert (await send("GET", path, app=app)).status_code == 200
    assert (await send("GET", "/version/", app=app)).status_code == 401


@pytest.mark.parametrize("path", GETS)
async def test_head_is_get_without_a_body(path: str) -> None:
    app = stub_app()
    head, whole = await send("HEAD", path, app=app), await send("GET", path, app=app)
    assert head.status_code == whole.status_code == 200
    assert head.content == b""
    assert whole.content
    assert head.headers["content-type"] == whole.headers["content-type"]
    if path != "/metrics":  # which counts what is asked
        assert head.headers["content-length"] == str(len(whole.content))


def test_head_keeps_a_real_connection_in_order() -> None:
    with running(stub_app()) as url, httpx.Client(base_url=url) as client:
        for path in ("/health", "/nothing", CHAT, "/v1/models"):
            assert client.head(path).content == b""
            assert client.get("/health").json()["status"] == "ok"


async def test_what_was_sent_is_logged_and_the_route_is_counted() -> None:
    telemetry = Telemetry(QUIET)
    app = create_app(ApiSettings(), StubPool(), telemetry)
    await send("HEAD", "//v1/models/", app=app)
    text, _ = telemetry.metrics.render()
    assert b'{method="HEAD",route="/v1/models",status="200"} 1.0' in _bytes(text)


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/responses", "has no Responses API. Send the conversation to POST /v1/chat"),
        ("/v1/responses/resp_1/cancel", "has no Responses API"),
        ("/v1/messages/count_tokens", "has no interface of Anthropic's"),
        ("/v1/embeddings", "models that write text, and no others"),
        ("/v1/audio/speech", "reads and writes text only"),
        ("/v1/files", "keeps no answers, files or jobs"),
        ("/v1/chat/completions/chatcmpl-1", "keeps no answers, files or jobs"),
        ("/api/chat", "has no interface of Ollama's"),
        ("/healthz", "GET /health tells"),
        ("/chat/completions", "Did you mean /v1/chat/completions?"),
        ("/v1/v1/completions", "Did you mean /v1/completions?"),
        ("/openai/v1/models", "Did you mean /v1/models?"),
        ("/v1/nothing", "route. The routes are: "),
        ("/v1/messages_of_mine", "route. The routes are: "),
    ],
)
async def test_a_route_that_is_not_there_is_answered_with_those_that_are(
    path: str, hint: str
) -> None:
    have = await send("POST", path, json={})
    assert have.status_code == 404
    error = have.json()["error"]
    assert error["code"] == "not_found"
    assert hint in error["message"]
    for route in (f"POST {CHAT}", "GET /health", "GET /v1/models/{model_id}", "GET /docs"):
        assert route in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("HEAD", CHAT, "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("PUT", "/v1/models/a/b", "GET, HEAD"),
        ("PUT", "/", "GET, HEAD"),
        ("PATCH", "/v1/classify/prototypes/mine", "GET, HEAD, DELETE"),
    ],
)
async def test_another_method_is_answered_with_the_routes_own(
    method: str, path: str, allow: str
) -> None:
    have = await send(method, path)
    assert (have.status_code, have.headers["allow"]) == (405, allow)
    if method != "HEAD":
        want = f"{path} takes {allow.replace(', HEAD', '')}, not {method}."
        assert have.json()["error"]["message"] == want


async def test_the_first_page_says_what_this_is() -> None:
    app = stub_app(StubPool(served=[StubModel(name="a<b"), StubModel(name="c")]))
    have = (await send("GET", "/", app=app)).json()
    assert (have["name"], have["models"], have["docs"]) == ("plait", ["a<b", "c"], "/docs")
    page = await send("GET", "/", app=app, headers={"accept": "text/html,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<code>a&lt;b</code>, <code>c</code>" in page.text
    assert 'base_url="http://test/v1"' in page.text.replace("&#34;", '"')


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_load_nothing_from_elsewhere(path: str) -> None:
    page = await send("GET", path, headers={"accept": "text/html"})
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    links = re.findall(r"(?:href|src|action)=[\"']?([^\"'> ]*)", page.text)
    assert all(link.startswith("/") for link in links)
    assert "<script" not in page.text
    assert "@import" not in page.text
    app = stub_app()
    for link in links:
        assert (await send("GET", link, app=app)).status_code == 200


async def test_the_reference_has_every_route_and_field() -> None:
    app = stub_app()
    page = (await send("GET", "/docs", app=app)).text
    document = app.openapi()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page
    for schema in document["components"]["schemas"].values():
        for name in schema.get("properties", ()):
            assert f"<code>{name}</code>" in page
    assert "Continue a conversation." in page


PROMETHEUS = {
    "2.45": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;"
    "version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "2.53": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
    "encoding=delimited;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4,"
    "application/openmetrics-text;version=0.0.1;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    "3.0": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    "none": "*/*",
}


@pytest.mark.parametrize("accept", PROMETHEUS.values(), ids=PROMETHEUS)
async def test_metrics_keep_vllms_names_whatever_a_scraper_prefers(accept: str) -> None:
    """In OpenMetrics, prometheus-client writes vllm_ for vllm:, and no dashboard would find it."""
    app = create_app(ApiSettings(), StubPool(), Telemetry(TelemetrySettings(access_log=False)))
    have = await send("GET", "/metrics", app=app, headers={"accept": accept})
    assert have.headers["content-type"].startswith("text/plain")
    families = re.findall(r"^# TYPE (\S+) ", have.text, re.MULTILINE)
    assert "vllm:request_success_total" in families
    assert "vllm:time_to_first_token_seconds" in families
    assert not [name for name in families if name.startswith("vllm_")]
