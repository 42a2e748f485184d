"""Responses of /v1/classify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from plait.server.api.classify.run import PromptScores
from plait.server.api.classify.scores import (
    WordScores,
    class_scores,
    mean_scores,
    probabilities,
    word_scores,
)
from plait.server.api.responses.objects import CompletionTokensDetails, PromptTokensDetails, Usage
from plait.server.api.schemas.classify import ClassifyRequest
from plait.server.prompt.logprobs import finite


class TemplateScores(Struct, frozen=True):
    """What one template says of an input."""

    scores: Mapping[str, float]  # of each class
    logprobs: WordScores  # of each label word behind the prompt
    empty_logprobs: WordScores | UnsetType = UNSET  # the same of an empty input, if calibrated


class Classification(Struct, frozen=True):
    """The class of one input."""

    index: int
    name: str = field(name="class")  # of the highest score; of equals the first
    scores: Mapping[str, float]
    probabilities: Mapping[str, float]  # the softmax of the scores
    templates: Sequence[TemplateScores] | UnsetType = UNSET


class ClassificationList(Struct, frozen=True):
    """The class of each input."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    data: Sequence[Classification]
    usage: Usage
    object: Literal["list"] = "list"


def classifications(
    request: ClassifyRequest, found: Sequence[Sequence[PromptScores]]
) -> list[Classification]:
    """Return the class of each input.

    Args:
        request: The request.
        found: [templates][inputs], last that of an empty input if the scores are calibrated.
    """
    words = request.words
    logprobs = [
        [word_scores([finite(value) for value in each.logprobs], words) for each in template]
        for template in found
    ]
    return [_classification(request, logprobs, i) for i in range(len(request.inputs))]


def usage_of(
    prompts: Sequence[Sequence[Sequence[int]]], found: Sequence[Sequence[PromptScores]]
) -> Usage:
    """Return the tokens of all prompts; nothing is generated."""
    count = sum(len(prompt) for template in prompts for prompt in template)
    cached = sum(each.cached_tokens for template in found for each in template)
    details = PromptTokensDetails(cached), CompletionTokensDetails()
    return Usage(count, 0, count, *details)


def _classification(
    request: ClassifyRequest, logprobs: Sequence[Sequence[WordScores]], i: int
) -> Classification:
    templates = [_template_scores(request, template, i) for template in logprobs]
    scores = mean_scores([each.scores for each in templates])
    return Classification(
        i,
        max(scores, key=lambda name: scores[name]),
        scores,
        probabilities(scores),
        templates if request.trace else UNSET,
    )


def _template_scores(
    request: ClassifyRequest, template: Sequence[WordScores], i: int
) -> TemplateScores:
    empty = template[-1] if len(template) > len(request.inputs) else None
    scores = class_scores(template[i], empty, request.combine or "mean")
    return TemplateScores(scores, template[i], UNSET if empty is None else empty)
