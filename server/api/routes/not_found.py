"""Errors for unknown routes: what to use here in place of other servers' routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plait.server.errors import NotFound

CHAT = "/v1/chat/completions"
_NO_MODEL = "This server has models that write text, and no others"
_CHAT_ONLY = f"Send the conversation to POST {CHAT}"
_TEXT_ONLY = "This server reads and writes text only"
_NO_STORE = "This server keeps no answers, files or jobs"
# By the beginning of the path, without /v1: routes of OpenAI and of other servers.
ELSEWHERE: Mapping[str, str] = {
    "/responses": f"This server has no Responses API. {_CHAT_ONLY}",
    "/conversations": f"This server has no Responses API. {_CHAT_ONLY}",
    "/messages": f"This server has no interface of Anthropic's. {_CHAT_ONLY}",
    "/complete": f"This server has no interface of Anthropic's. {_CHAT_ONLY}",
    "/api": f"This server has no interface of Ollama's. {_CHAT_ONLY}",
    "/completion": "POST /v1/completions continues a prompt",
    "/generate": "POST /v1/completions continues a prompt",
    "/generate_stream": 'POST /v1/completions with "stream": true continues a prompt',
    "/infill": "POST /v1/completions fills gaps, with suffix or infill, on diffusion models",
    "/invocations": f"This server has no interface of SageMaker's. {_CHAT_ONLY}",
    "/embeddings": _NO_MODEL,
    "/embed": _NO_MODEL,
    "/moderations": _NO_MODEL,
    "/rerank": _NO_MODEL,
    "/score": _NO_MODEL,
    "/classify": "POST /v1/classify scores label words",
    "/pooling": _NO_MODEL,
    "/audio": _TEXT_ONLY,
    "/images": _TEXT_ONLY,
    "/videos": _TEXT_ONLY,
    "/realtime": f"This server has no WebSocket. {_CHAT_ONLY}",
    "/chat/completions": _NO_STORE,
    "/files": _NO_STORE,
    "/uploads": _NO_STORE,
    "/batches": _NO_STORE,
    "/fine_tuning": _NO_STORE,
    "/vector_stores": _NO_STORE,
    "/assistants": f"This server has no Assistants API. {_CHAT_ONLY}",
    "/threads": f"This server has no Assistants API. {_CHAT_ONLY}",
    "/engines": "GET /v1/models lists the models",
    "/props": "GET /v1/models lists the models",
    "/info": "GET /v1/models lists the models",
    "/server_info": "GET /v1/models lists the models",
    "/slots": "GET /metrics tells what runs",
    "/load": "GET /metrics tells what runs",
    "/ping": "GET /health tells whether the server lives",
    "/healthz": "GET /health tells whether the server lives",
    "/livez": "GET /health tells whether the server lives",
    "/readyz": "GET /ready tells whether the server takes requests",
}


def no_such_route(path: str, routes: Mapping[str, Sequence[str]]) -> NotFound:
    """Return the error for an unknown path. `routes` has the methods of each known path."""
    known = ", ".join(f"{'/'.join(methods)} {route}" for route, methods in routes.items())
    hint = _meant(path, routes) or _elsewhere(path)
    return NotFound(f"There is no such route. {hint}The routes are: {known}.")


def _meant(path: str, routes: Mapping[str, Sequence[str]]) -> str:
    """Return the route that a path means if its client has a wrong base URL."""
    whole = [route for route in routes if route.count("/") > 1]
    for route in sorted(whole, key=len, reverse=True):
        if path.endswith((route, route.removeprefix("/v1"))) and "{" not in route:
            return f"Did you mean {route}? A base URL ends in /v1. "
    return ""


def _elsewhere(path: str) -> str:
    """Return what to use in place of a route of another server."""
    rest = path.removeprefix("/v1")
    for beginning, why in ELSEWHERE.items():
        if rest == beginning or rest.startswith(f"{beginning}/"):
            return f"{why}. "
    return ""
