"""Prototypes of classes: trained from labelled examples in closed form, compared by cosine.

Source: Multi-Prompting Decoder (MPD), arXiv:2406.06279. An input has P views, the hidden states
behind P templates; a class has Q prototypes, and its score is the cosines weighted by the transport
plan between both. What differs: the paper trains a linear map and the prototypes by gradient
descent. Here the map is the centring and normalisation of SimpleShot (arXiv:1911.04623), and a
class's prototypes are the means of its examples, one for each template, so Q is P.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from plait.server.api.schemas.classify import Match

Array: TypeAlias = NDArray[np.float64]
EPSILON = 0.1  # weight of the plan's entropy
MAX_ROUNDS = 1000
TOLERANCE = 1e-9  # of the plan's marginals
LEAST_NORM = 1e-12  # a view that is the centre itself is like no class


@dataclass(frozen=True, slots=True)
class Prototypes:
    """A named set of prototypes, as it is kept; immutable."""

    name: str
    model: str
    templates: tuple[str, ...]
    num_examples: Mapping[str, int]  # of each class
    centres: Array = field(repr=False)  # [templates, hidden] mean of all examples
    means: Array = field(repr=False)  # [classes, templates, hidden] of length 1
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        return int(self.centres.nbytes + self.means.nbytes)

    @property
    def shots(self) -> int:
        """Examples of the class that has the fewest."""
        return min(self.num_examples.values())


def train(
    name: str,
    model: str,
    templates: Sequence[str],
    examples: Mapping[str, Sequence[Sequence[bytes]]],
) -> Prototypes:
    """Return the prototypes of some classes.

    Args:
        name: Of the set.
        model: Whose hidden states these are.
        templates: [P] around the examples.
        examples: Of each class [examples][P] hidden states, as float32.
    """
    views = {label: _views(own) for label, own in examples.items()}
    centres = np.concatenate(list(views.values())).mean(axis=0)
    means = [_unit(_unit(own - centres).mean(axis=0)) for own in views.values()]
    counts = {label: len(own) for label, own in examples.items()}
    return Prototypes(name, model, tuple(templates), counts, centres, np.stack(means))


def prototype_scores(
    prototypes: Prototypes, hidden: Sequence[Sequence[bytes]], match: Match
) -> list[dict[str, float]]:
    """Return each input's score of each class, from -1 to 1.

    Args:
        prototypes: The classes.
        hidden: [inputs][P] hidden states behind the prototypes' templates, as float32.
        match: "template": the mean of the cosines between a view and the prototype of the same
            template. "transport": the sum of all cosines, weighted by the plan.
    """
    views = _unit(_views(hidden) - prototypes.centres)
    cosines = np.einsum("iph,cqh->icpq", views, prototypes.means)
    if match == "template":
        scores = np.trace(cosines, axis1=2, axis2=3) / len(prototypes.templates)
    else:
        scores = (transport_plan(1.0 - cosines) * cosines).sum(axis=(2, 3))
    names = list(prototypes.num_examples)
    return [dict(zip(names, map(float, own), strict=True)) for own in scores]


def transport_plan(costs: Array) -> Array:
    """Return the plan [..., P, Q] of the least cost plus EPSILON times negative entropy.

    Sinkhorn's algorithm in the log domain, for all leading indices. Law: a plan's columns sum to
    1/Q and its rows to 1/P (the latter in the limit of many rounds), and no other plan affects it.
    """
    rows, columns = costs.shape[-2:]
    kernels = -costs.reshape(-1, rows, columns) / EPSILON
    plans, shift = np.empty_like(kernels), np.zeros((len(kernels), columns))
    going = np.arange(len(kernels))  # plans that have not converged
    for _ in range(MAX_ROUNDS):
        kernel = kernels[going]
        scale = -np.log(rows) - _log_sum_exp(kernel + shift[going][:, None, :], -1)
        shift[going] = -np.log(columns) - _log_sum_exp(kernel + scale[:, :, None], -2)
        plans[going] = np.exp(kernel + scale[:, :, None] + shift[going][:, None, :])
        going = going[np.abs(plans[going].sum(axis=-1) - 1 / rows).max(axis=-1) > TOLERANCE]
        if not len(going):
            break
    return plans.reshape(costs.shape)


def _views(hidden: Sequence[Sequence[bytes]]) -> Array:
    """Return hidden states as an array [inputs, P, hidden]."""
    return np.array([[np.frombuffer(each, "<f4") for each in own] for own in hidden], np.float64)


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: Array = vectors / np.maximum(norms, LEAST_NORM)
    return found


def _log_sum_exp(values: Array, axis: int) -> Array:
    top = values.max(axis=axis, keepdims=True)
    found: Array = np.squeeze(top, axis) + np.log(np.exp(values - top).sum(axis=axis))
    return found
