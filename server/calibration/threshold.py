"""The entropy up to which a model's likeliest token is probably the right one.

A logistic regression of "the true token is the likeliest" on the entropy, with as many tokens of
either kind, fitted on 80 % of them; of the probabilities 0.01, 0.02, ... 0.99 the one that tells
the other 20 % apart best becomes the threshold.

Source: AdaDec, arXiv:2506.08980, section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 0.2
RIDGE = 1.0  # squared slope in the loss, as in scikit-learn's default; the intercept is free
MAX_NEWTON_STEPS = 100
MIN_TOKENS = 20  # of either kind

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class CannotCalibrate(ValueError):
    """The data does not say where the threshold is."""


@dataclass(frozen=True, slots=True)
class EntropyThreshold:
    """A fitted threshold."""

    tau: float  # nats
    probability: float  # that the likeliest token is right, at tau
    accuracy: float  # of "right if the entropy is at most tau" on the held-out tokens
    num_tokens: int  # of both kinds, balanced


def fit_threshold(entropies: Floats, is_first: Flags, *, seed: int = 0) -> EntropyThreshold:
    """Return the threshold. Cost: some passes over the tokens.

    Args:
        entropies: [tokens] nats, of the distribution at each token.
        is_first: [tokens] whether the true token was the likeliest.
        seed: of the draws that balance and split the tokens.
    Raises:
        CannotCalibrate: too few tokens of a kind, or the likeliest token is no likelier to be right
            where the entropy is low.
    """
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(is_first == kind) for kind in (False, True)]
    size = min(map(len, kinds))
    if size < MIN_TOKENS:
        raise CannotCalibrate(
            f"of {len(entropies)} tokens, {len(kinds[1])} were the likeliest and {len(kinds[0])} "
            f"were not; give texts with at least {MIN_TOKENS} of either kind"
        )
    chosen = rng.permutation(np.concatenate([rng.permutation(kind)[:size] for kind in kinds]))
    num_held_out = max(round(HELD_OUT * len(chosen)), 1)
    held_out, fitted = chosen[:num_held_out], chosen[num_held_out:]
    slope, intercept = fit_logistic(entropies[fitted], is_first[fitted])
    if slope >= 0:
        raise CannotCalibrate("on these texts the entropy does not tell where the model is wrong")
    probabilities = np.arange(1, 100) / 100
    taus = (np.log(probabilities / (1 - probabilities)) - intercept) / slope
    right = (entropies[held_out][None] <= taus[:, None]) == is_first[held_out][None]
    accuracy = right.mean(axis=1)
    ties = np.flatnonzero(accuracy == accuracy.max())
    best = int(ties[np.abs(probabilities[ties] - 0.5).argmin()])
    return EntropyThreshold(
        max(float(taus[best]), 0.0),
        float(probabilities[best]),
        float(accuracy[best]),
        len(chosen),
    )


def fit_logistic(x: Floats, y: Flags) -> tuple[float, float]:
    """Return slope and intercept of P(y | x) = 1 / (1 + exp(-slope * x - intercept)).

    They minimise the negative log-likelihood plus RIDGE / 2 * slope ** 2, by Newton's method.
    """
    design = np.stack([x, np.ones_like(x)], axis=1)
    ridge = np.diag([RIDGE, 0.0])
    weights = np.zeros(2)
    for _ in range(MAX_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (p - y) + ridge @ weights
        curvature = (design.T * (p * (1 - p))) @ design + ridge + 1e-12 * np.eye(2)
        change = np.linalg.solve(curvature, gradient)
        weights -= change
        if math.sqrt(change @ change) < 1e-10:
            break
    return float(weights[0]), float(weights[1])
