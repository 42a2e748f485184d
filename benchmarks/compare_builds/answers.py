"""What a client sees of an answer, without what differs from run to run; and two such, compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

TOLERANCE = 1e-6  # of a log-probability
HEADERS = ("content-type", "x-plait-seed", "x-plait-warning", "retry-after")
# Different in every run.
VOLATILE = frozenset({"id", "created", "system_fingerprint"})
# Where other requests run, or drafts are fed as they pay, these follow the clock.
TIMED = frozenset(
    {
        *("cached_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"),
        *("forwards", "tokens_per_forward", "steps", "drafted", "accepted"),
    }
)
LAST_WINS = frozenset({"usage", "decoding", "error"})  # of a stream's chunks
JOINED = frozenset({"content", "text"})


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; the chunks of a stream are folded into one."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def is_error(self) -> bool:
        """Whether a client would raise."""
        return self.status >= httpx.codes.BAD_REQUEST


def read(response: httpx.Response) -> Answer:
    """Return what was answered, of a response that has been read."""
    headers = {name: response.headers[name] for name in HEADERS if name in response.headers}
    if headers.get("content-type", "").startswith("text/event-stream"):
        return Answer(response.status_code, headers, _folded(response.text))
    try:
        body = response.json()
    except ValueError:
        body = response.text
    return Answer(response.status_code, headers, _without(body, VOLATILE))


def _folded(text: str) -> dict[str, Any]:
    """Return a stream as one object: texts and lists joined, by choice; of the rest, the last."""
    body: dict[str, Any] = {"ends": "", "choices": {}}
    for line in text.splitlines():
        if not line.startswith("data: "):
            continue
        if not line.startswith("data: {"):
            body["ends"] += line
            continue
        chunk = _without(json.loads(line[6:]), VOLATILE)
        for choice in chunk.pop("choices", ()):
            _merge(body["choices"].setdefault(str(choice.pop("index")), {}), choice)
        _merge(body, chunk)
    return body


def _merge(into: dict[str, Any], chunk: Mapping[str, Any]) -> None:
    for key, value in chunk.items():
        known = into.get(key)
        if value is None:
            into.setdefault(key, None)
        elif key in LAST_WINS or known is None:
            into[key] = value
        elif isinstance(known, dict):
            _merge(known, value)
        elif isinstance(known, list) or (key in JOINED and isinstance(known, str)):
            into[key] = known + value
        else:
            into[key] = value


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    if isinstance(value, list):
        return [_without(inner, keys) for inner in value]
    return value


def differences(want: Answer, have: Answer, *, is_exact: bool) -> list[str]:
    """Return where two answers differ, as `path: want -> have`; [] if a client sees the same.

    is_exact: counts of passes, drafts and cached tokens are compared as well.
    """
    ignored = frozenset[str]() if is_exact else TIMED
    pairs = (
        (
            {
                "status": answer.status,
                "headers": answer.headers,
                "body": _without(answer.body, ignored),
            }
        )
        for answer in (want, have)
    )
    return [*_unequal("", *pairs)]


def is_reworded(want: Answer, have: Answer) -> bool:
    """Return whether both are errors of one status and type, which only say it otherwise."""
    if not (want.is_error and want.status == have.status):
        return False
    kinds = [answer.body.get("error", {}).get("type") for answer in (want, have)]
    return kinds[0] is not None and kinds[0] == kinds[1]


def _unequal(path: str, want: Any, have: Any) -> Iterator[str]:
    if isinstance(want, Mapping) and isinstance(have, Mapping):
        for key in sorted({*want, *have}):
            yield from _unequal(f"{path}.{key}", want.get(key, "absent"), have.get(key, "absent"))
    elif isinstance(want, list) and isinstance(have, list) and len(want) == len(have):
        for i, pair in enumerate(zip(want, have, strict=True)):
            yield from _unequal(f"{path}[{i}]", *pair)
    elif isinstance(want, float) and isinstance(have, float):
        if abs(want - have) > TOLERANCE:
            yield f"{path}: {want} -> {have}"
    elif want != have:
        yield f"{path}: {want!r} -> {have!r}"
