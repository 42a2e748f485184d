"""What a request of /v1/classify has the model read: named texts, so that errors can name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from plait.server.api.classify.prototypes import Prototypes
from plait.server.api.schemas.classify import PLACE, ClassifyRequest, TrainRequest
from plait.server.errors import BadRequest
from plait.server.settings import LimitSettings


class NamedText(NamedTuple):
    """A text with its path in the request."""

    param: str
    text: str


class LabelWord(NamedTuple):
    """A label word with its path in the request, and its class."""

    param: str
    text: str
    label: str


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """Templates around inputs, and the label words behind them."""

    templates: Sequence[NamedText]
    inputs: Sequence[NamedText]
    words: Sequence[LabelWord] = ()
    is_calibrated: bool = False  # read each template with an empty input as well

    @property
    def num_prompts(self) -> int:
        """Prompts that are read."""
        return len(self.templates) * (len(self.inputs) + self.is_calibrated)

    @property
    def num_chars(self) -> int:
        """Characters that have to be tokenized."""
        templates = sum(len(each.text) for each in self.templates) * (len(self.inputs) + 1)
        inputs = sum(len(each.text) for each in self.inputs) * len(self.templates)
        return templates + inputs + sum(len(each.text) for each in self.words)

    def check(self, limits: LimitSettings) -> None:
        """Raise BadRequest for a template without a place, a blank word, or too many prompts."""
        for param, text in self.templates:
            if PLACE not in text:
                raise BadRequest(f"{param} has no {PLACE}, where the input stands.", param=param)
        for param, text, _ in self.words:
            if not text.strip():
                raise BadRequest(f"{param}: a label word needs more than blanks.", param=param)
        most = limits.max_sequences_per_request
        if self.num_prompts > most:
            empty = ", and with an empty input to calibrate" if self.is_calibrated else ""
            field = self.inputs[0].param.partition(".")[0].partition("[")[0]
            raise BadRequest(
                f"These are {self.num_prompts} prompts, each template with each input{empty}; one "
                f"request may have {most}.",
                param=field,
            )


def check_salt(salt: str | None, limits: LimitSettings) -> None:
    """Raise BadRequest for a salt that is too long."""
    limit = limits.max_cache_salt_chars
    if len(salt or "") > limit:
        raise BadRequest(f"cache_salt may have at most {limit} characters.", param="cache_salt")


def classify_task(request: ClassifyRequest, prototypes: Prototypes | None) -> ScoringTask:
    """Return what a classify request has the model read; the prototypes are those that it names.

    Raises:
        BadRequest: fields that contradict each other, or the prototypes.
    """
    _check_fields(request)
    if prototypes is not None:
        _check_prototypes(request, prototypes)
        templates = [NamedText("prototypes", text) for text in prototypes.templates]
    else:
        templates = _named("template", request.template or [])
    words = [
        LabelWord(*_item(f"classes.{label}", (request.classes or {})[label], i, word), label)
        for label, words in request.words.items()
        for i, word in enumerate(words)
    ]
    is_calibrated = bool(words) and request.calibrate is not False
    return ScoringTask(templates, _named("input", request.input), words, is_calibrated)


def training_task(request: TrainRequest) -> ScoringTask:
    """Return what a request to train has the model read, class after class."""
    inputs = [
        NamedText(f"examples.{label}[{i}]", text)
        for label, texts in request.examples.items()
        for i, text in enumerate(texts)
    ]
    return ScoringTask(_named("template", request.template), inputs)


def _check_fields(request: ClassifyRequest) -> None:
    """Refuse fields that nothing would read."""
    if (request.template is None) == (request.prototypes is None):
        raise BadRequest(
            "Give either a template or prototypes, which have their own.", param="template"
        )
    if request.prototypes is None:
        needs = [name for name in ("match", "beta") if getattr(request, name) is not None]
        if needs:
            raise BadRequest(f"{needs[0]} needs prototypes.", param=needs[0])
        if request.classes is None:
            raise BadRequest("Without prototypes, classes are needed.", param="classes")
    if request.classes is None:
        about = ("beta", "calibrate", "combine")
        needs = [name for name in about if getattr(request, name) is not None]
        if needs:
            raise BadRequest(f"{needs[0]} is about label words: give classes.", param=needs[0])


def _check_prototypes(request: ClassifyRequest, prototypes: Prototypes) -> None:
    """Refuse prototypes of other classes."""
    known = prototypes.num_examples.keys()
    if request.classes is not None and request.classes.keys() != known:
        names = ", ".join(map(repr, known))
        raise BadRequest(f"The prototypes have the classes {names}.", param="classes")


def _named(field: str, value: str | list[str]) -> list[NamedText]:
    texts = [value] if isinstance(value, str) else value
    return [_item(field, value, i, text) for i, text in enumerate(texts)]


def _item(field: str, value: str | list[str], i: int, text: str) -> NamedText:
    """Return an item of a field that may also be a single text."""
    return NamedText(field if isinstance(value, str) else f"{field}[{i}]", text)
