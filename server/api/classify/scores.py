"""From the log-probabilities of label words to scores of classes.

Source: Multi-Prompting Decoder (MPD), arXiv:2406.06279: label words that are expanded and averaged,
class scores calibrated by those of an empty input, several templates averaged. There the scores are
the logits of a masked model at one position; here they are the log-probabilities of whole words
behind the prompt, which differ from logits by what all words of a template share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from plait.server.api.schemas.classify import Combine

WordScores = Mapping[str, Sequence[float]]  # of the words of each class


def word_scores(logprobs: Sequence[float], words: Mapping[str, Sequence[str]]) -> WordScores:
    """Return the log-probabilities by class; they stand in the order of the words."""
    values = iter(logprobs)
    return {name: [next(values) for _ in own] for name, own in words.items()}


def class_scores(found: WordScores, empty: WordScores | None, combine: Combine) -> dict[str, float]:
    """Return the score of each class under one template.

    Args:
        found: Of an input's prompt.
        empty: Of the prompt of an empty input, to be subtracted word by word; None: of none.
        combine: How the words of a class become one score.
    """
    combined = COMBINED[combine]
    if empty is None:
        return {name: combined(values) for name, values in found.items()}
    return {
        name: combined([value - own for value, own in zip(values, empty[name], strict=True)])
        for name, values in found.items()
    }


def mean_scores(templates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each class's scores over the templates."""
    return {name: fmean(each[name] for each in templates) for name in templates[0]}


def probabilities(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the softmax of the classes' scores."""
    total = log_sum_exp(list(scores.values()))
    return {name: math.exp(score - total) for name, score in scores.items()}


def log_sum_exp(values: Sequence[float]) -> float:
    """Return the log of the sum of the exponentials."""
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


COMBINED: Mapping[Combine, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "sum": log_sum_exp,
    "max": max,
}
