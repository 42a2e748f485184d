"""Responses of /v1/classify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from plait.server.api.classify.prototypes import Prototypes, prototype_scores
from plait.server.api.classify.run import PromptScores
from plait.server.api.classify.scores import (
    WordScores,
    class_scores,
    mean_scores,
    probabilities,
    word_scores,
)
from plait.server.api.responses.objects import Usage
from plait.server.api.schemas.classify import ClassifyRequest
from plait.server.prompt.logprobs import finite


class TemplateScores(Struct, frozen=True):
    """What the label words behind one template say of an input."""

    scores: Mapping[str, float]  # of each class
    logprobs: WordScores  # of each label word behind the prompt
    empty_logprobs: WordScores | UnsetType = UNSET  # the same of an empty input, if calibrated


class Classification(Struct, frozen=True):
    """The class of one input."""

    index: int
    name: str = field(name="class")  # of the highest score; of equals the first
    scores: Mapping[str, float]
    probabilities: Mapping[str, float]  # the softmax of the scores
    templates: Sequence[TemplateScores] | UnsetType = UNSET  # with trace: of the label words
    prototypes: Mapping[str, float] | UnsetType = UNSET  # with trace: scores of the prototypes


class ClassificationList(Struct, frozen=True):
    """The class of each input."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    data: Sequence[Classification]
    usage: Usage
    object: Literal["list"] = "list"


class PrototypeSet(Struct, frozen=True):
    """Prototypes that are kept."""

    name: str
    model: str
    created: int
    examples: Mapping[str, int]  # number of them, by class
    templates: Sequence[str]
    bytes: int  # of memory
    usage: Usage | UnsetType = UNSET  # of their training
    object: Literal["classify.prototypes"] = "classify.prototypes"


class PrototypeSetList(Struct, frozen=True):
    """The prototypes of the caller's API key, used least recently first."""

    data: Sequence[PrototypeSet]
    object: Literal["list"] = "list"


class DeletedPrototypes(Struct, frozen=True):
    """Prototypes that are kept no more."""

    name: str
    deleted: Literal[True] = True
    object: Literal["classify.prototypes.deleted"] = "classify.prototypes.deleted"


def prototype_set(prototypes: Prototypes, usage: Usage | UnsetType = UNSET) -> PrototypeSet:
    """Return what a client is told of prototypes."""
    return PrototypeSet(
        prototypes.name,
        prototypes.model,
        prototypes.created,
        prototypes.num_examples,
        prototypes.templates,
        prototypes.num_bytes,
        usage,
    )


def classifications(
    request: ClassifyRequest,
    found: Sequence[Sequence[PromptScores]],
    prototypes: Prototypes | None = None,
) -> list[Classification]:
    """Return the class of each input.

    Args:
        request: The request.
        found: [templates][inputs], last that of an empty input if the scores are calibrated.
        prototypes: Those that the request names.
    """
    count = len(request.inputs)
    by_words = [_by_words(request, found, i) for i in range(count)]
    if prototypes is None:
        return [_classification(request, i, by_words[i], None, 1.0) for i in range(count)]
    hidden = [[template[i].hidden for template in found] for i in range(count)]
    compared = prototype_scores(prototypes, hidden, request.match or "template")
    beta = 1 / prototypes.shots if request.beta is None else request.beta
    return [_classification(request, i, by_words[i], compared[i], beta) for i in range(count)]


def _classification(
    request: ClassifyRequest,
    i: int,
    templates: Sequence[TemplateScores],
    compared: Mapping[str, float] | None,
    beta: float,
) -> Classification:
    """Return the class by the label words, by the prototypes, or by both.

    The prototypes' score counts once, that of the words beta times.
    """
    scores = dict(compared or {})
    if templates:
        words = mean_scores([each.scores for each in templates])
        scores = {name: scores.get(name, 0.0) + beta * score for name, score in words.items()}
    return Classification(
        i,
        max(scores, key=lambda name: scores[name]),
        scores,
        probabilities(scores),
        templates if request.trace and templates else UNSET,
        compared if request.trace and compared is not None else UNSET,
    )


def _by_words(
    request: ClassifyRequest, found: Sequence[Sequence[PromptScores]], i: int
) -> list[TemplateScores]:
    """Return what the label words say of an input under each template; nothing without words."""
    words = request.words
    made: list[TemplateScores] = []
    for template in found if words else ():
        own = word_scores([finite(value) for value in template[i].logprobs], words)
        empty: WordScores | None = None
        if request.calibrate is not False:
            empty = word_scores([finite(value) for value in template[-1].logprobs], words)
        scores = class_scores(own, empty, request.combine or "mean")
        made.append(TemplateScores(scores, own, UNSET if empty is None else empty))
    return made
