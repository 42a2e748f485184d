"""From pydantic's errors to one BadRequest: the client's field, a short message, a code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait.server.api.schemas.chat import UNSUPPORTED_VALUES
from plait.server.api.validation.hints import NO_HINT, Hint, hint_for
from plait.server.api.validation.locations import Location, Path, dotted, locate
from plait.server.errors import BadRequest

MAX_CHARS = 500  # of a message about a value the client sent
MAX_PARAM_CHARS = 200
MAX_NAMED = 8  # unknown fields that are named together
_MAX_REPORTS = 64  # of pydantic's errors that are read
_UNKNOWN = "extra_forbidden"
_MISSING = ("missing", "union_tag_not_found")
_NOT_AN_OBJECT = ("dict_type", "model_type", "model_attributes_type")
_CODES = {
    "unsupported_parameter": "unsupported_parameter",
    _UNKNOWN: "unknown_parameter",
    **dict.fromkeys(_MISSING, "missing_required_parameter"),
}


@dataclass(frozen=True, slots=True)
class _Report:
    """One validation error."""

    location: Location
    type: str
    text: str
    hint: Hint = NO_HINT

    @property
    def path(self) -> Path:
        return self.location.path


def invalid_request(kind: Any, errors: Sequence[Any]) -> BadRequest:
    """Return the error for a body or query that doesn't validate; it is about its first bad field.

    A union reports an error for each branch: the one deepest within the field is taken, and those
    at the same place are joined. Unknown fields are named together, before the fields that are
    missing and were probably meant.
    """
    reports = [_report(kind, error) for error in errors[:_MAX_REPORTS]]
    meant = {report.hint.points_to for report in reports}
    reports = [r for r in reports if r.type not in _MISSING or r.path not in meant] or reports
    field = reports[0].path[:1]
    about = [report for report in reports if report.path[:1] == field]
    first = max(about, key=lambda report: len(report.path))
    if not first.path and first.type in _NOT_AN_OBJECT:
        return BadRequest("The body must be a JSON object.")
    param = _clip(dotted(first.path), MAX_PARAM_CHARS)
    text = _text(first, about if len(first.path) > 1 else reports)
    return BadRequest(
        _clip(f"{param}: {text}" if param else text, MAX_CHARS),
        param=param or None,
        code=_CODES.get(first.type),
    )


def _report(kind: Any, error: Any) -> _Report:
    location = locate(kind, error["loc"][1:])  # [0] is "body" or "query"
    report = _Report(location, error["type"], _plain(error))
    if report.type == _UNKNOWN:
        hint = hint_for(location)
        return replace(report, text=f"There is no such parameter. {hint.text}".strip(), hint=hint)
    if report.type in ("union_tag_not_found", "union_tag_invalid"):
        report = _of_tag(report, error["ctx"])
    return _with_reason(report, error)


def _plain(error: Any) -> str:
    """Return pydantic's message without Python's type names."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _NOT_AN_OBJECT:
        return "Input should be an object"
    if kind == "too_short":
        return f"Input should have at least {context['min_length']} item"
    if kind == "too_long":
        return f"Input should have at most {context['max_length']} items"
    return str(error["msg"])


def _of_tag(report: _Report, context: Any) -> _Report:
    """Return the report moved from a union to the field that selects its branch."""
    path = (*report.path, context["discriminator"].strip("'()"))
    expected = context.get("expected_tags")
    text = "Field required" if expected is None else f"Input should be one of {expected}"
    return replace(report, location=Location(path, (*report.location.owners, ())), text=text)


def _with_reason(report: _Report, error: Any) -> _Report:
    """Add the reason if the value is one of OpenAI's that is not supported."""
    value = error.get("ctx", {}).get("tag", error["input"])
    reasons = UNSUPPORTED_VALUES.get(report.location.name, {})
    if not isinstance(value, str) or value not in reasons:
        return report
    text = f"{value!r} is not supported: {reasons[value]}"
    return replace(report, type="unsupported_parameter", text=text)


def _text(first: _Report, reports: Sequence[_Report]) -> str:
    if first.type != _UNKNOWN:
        return "; or: ".join(dict.fromkeys(r.text for r in reports if r.path == first.path))
    siblings = [r for r in reports if r.type == _UNKNOWN and r.path[:-1] == first.path[:-1]]
    others = [r for r in siblings if r.path != first.path]
    if not others:
        return first.text
    named = [_named(report, first.hint) for report in others[:MAX_NAMED]]
    if len(others) > MAX_NAMED:
        named.append("and others")
    return f"{first.text} Neither is there {', '.join(named)}."


def _named(report: _Report, known: Hint) -> str:
    """Return an unknown field's path, and its hint unless that equals the known one."""
    name = _clip(dotted(report.path), MAX_PARAM_CHARS // 2)
    hint = "" if report.hint == known else report.hint.text.rstrip(".")
    return f"{name} ({hint})" if hint else name


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
