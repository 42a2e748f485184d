"""The parts of a step beside the selector, on vectors made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plait.decoders.contract.registry import MethodError
from tests.fixtures.step_views import cache_view, part, view_of


def test_credit_grows_and_fades() -> None:
    method = part("credit", {"weight": 1.0, "fade": 0.5, "power": 1.0, "slots": 2})
    first = method.bias(view_of([0.5, 0.4], tokens=[3, 4]), None)
    assert (first.rows.tolist(), first.tokens.tolist()) == ([0, 1], [3, 4])
    assert first.deltas == pytest.approx(np.log([1.5, 1.4]))
    second = method.bias(view_of([0.6], positions=[1], tokens=[5]), first.memory)
    assert second.rows.tolist() == [0, 0]
    assert dict(zip(second.tokens.tolist(), second.deltas, strict=True)) == pytest.approx(
        {4: np.log(1.2), 5: np.log(1.6)}
    )
    third = method.bias(view_of([0.7], positions=[1], tokens=[6]), second.memory)
    assert dict(zip(third.tokens.tolist(), third.deltas, strict=True)) == pytest.approx(
        {6: np.log(1.7), 5: np.log(1.3)}
    )
    assert first.memory.credits.tolist() == [[0.5, 0.0], [0.4, 0.0]]  # values don't change


def test_credit_without_tuning_follows_the_settled_share() -> None:
    method = part("credit", {"preset": "tuning-free"})
    bias = method.bias(view_of([0.5], positions=[0], tokens=[2], stop=4), None)
    assert bias.deltas == pytest.approx([0.75 * np.log(1.5)])


def test_ada_block_ends_at_the_surest_delimiter() -> None:
    method = part("ada-block", {"delimiter_ids": [7, 9]}, block_size=4)
    view = view_of([0.9, 0.4, 0.9, 0.5, 0.9, 0.9], tokens=[1, 7, 2, 9, 3, 4])
    assert method.length(view) == 4
    assert method.length(replace(view, tokens=np.array([1, 7, 2, 3, 4, 9]))) == 6
    assert method.length(replace(view, tokens=np.array([7, 1, 2, 3, 4, 5]))) == 1
    assert method.length(replace(view, p=np.full(6, 0.29), tokens=np.full(6, 7))) == 4
    assert method.length(view_of([0.9] * 2, tokens=[1, 1])) == 2  # less is left than a block
    later = view_of([0.9, 0.9], tokens=[1, 7], positions=[9, 12], start=8, stop=20)
    assert method.length(later) == 5
    floored = part("ada-block", {"delimiter_ids": [7], "floor": 3}, block_size=4)
    assert floored.length(view_of([0.9] * 6, tokens=[7, 1, 2, 3, 7, 1])) == 5


@pytest.mark.parametrize(
    ("remaining", "answer", "want"), [(100, 100, 25), (100, 8, 4), (3, 100, 3), (30, 512, 30)]
)
def test_ada_block_looks_ahead(remaining: int, answer: int, want: int) -> None:
    method = part("ada-block", {"delimiter_ids": [7]}, block_size=4)
    assert method.lookahead(remaining, answer) == want


def test_ada_block_needs_delimiters() -> None:
    with pytest.raises(MethodError, match="delimiter_ids"):
        part("ada-block")
    assert part("ada-block", delimiters={5, 3}).delimiters.tolist() == [3, 5]
    named = part("ada-block", {"delimiter_ids": [1]}, delimiters={5, 3})
    assert named.delimiters.tolist() == [1]


@pytest.mark.parametrize(
    ("options", "p", "want"),
    [
        ({}, [0.5, 0.99, 0.95, 0.99], 2),  # leftmost end that is sure enough
        ({}, [0.99, 0.99, 0.8, 0.7], None),
        ({"preset": "reference"}, [0.5, 0.99, 0.2, 0.3], 3),
        ({"preset": "reference"}, [0.5, 0.99, 0.3, 0.3], 2),
    ],
)
def test_eotp(options: dict[str, Any], p: list[float], want: int | None) -> None:
    view = view_of(p, is_end=[False, False, True, True])
    assert part("eotp", options).end(view) == want


def test_free_dave_fits_its_drafts_into_the_room() -> None:
    method = part("free-dave", {"width": 4})
    assert method.width(32, 32, 1000) == 4
    assert method.width(2, 32, 1000) == 2  # a draft without holes tells nothing
    assert method.width(32, 32, 95) == 3
    assert method.width(32, 32, 0) == 1
    assert method.width(0, 4, 100) == 1


@pytest.mark.parametrize(
    ("name", "options", "fields", "want"),
    [
        ("prefix-cache", {}, {"step": 0}, range(12)),
        ("prefix-cache", {}, {}, range(4, 12)),
        ("dual-cache", {}, {"step": 0}, range(12)),
        ("dual-cache", {}, {}, range(4, 8)),
        ("dual-cache", {"around": 3}, {}, range(1, 11)),
        ("dual-cache", {"preset": "dinfer"}, {}, range(12)),
        ("dkv-cache", {}, {"passes_since_refresh": 0}, range(12)),
        ("dkv-cache", {}, {}, range(4, 12)),
        (
            "dkv-cache",
            {},
            {"newly_unmasked": [1, 6], "positions": [5, 7], "p": [0, 0]},
            [1, *range(5, 12)],
        ),
        ("dkv-cache", {}, {"passes_since_refresh": 8}, range(12)),
        ("dkv-cache", {"refresh": 1}, {}, range(12)),
        ("dkv-cache", {"refresh": 9, "variant": "greedy", "radius": 1}, {}, range(3, 9)),
        ("recap", {"local": 0}, {}, range(12)),
        ("recap", {}, {"passes_since_refresh": 0}, range(12)),
        ("recap", {}, {"passes_since_refresh": 2}, range(12)),
        ("recap", {"active": 2}, {}, [4, 6, 7]),
        (
            "recap",
            {"local": 3, "active": 1},
            {"passes_since_refresh": 3, "newly_unmasked": []},
            [6],
        ),
        ("recap", {"full_first": 2}, {}, range(12)),
    ],
)
def test_caches(name: str, options: dict[str, Any], fields: dict[str, Any], want: Any) -> None:
    assert part(name, options).active_positions(cache_view(**fields)).tolist() == list(want)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"bar": 0.0}, [0, 3, 5]),
        ({"bar": 0.5}, [0, 3]),
        ({"bar": 0.5, "rule": "least"}, [0, 3, 5]),
        ({"bar": 0.7, "rule": "least"}, [0, 3]),
        ({"bar": 0.9}, [0]),
    ],
)
def test_scaffold_believes_likely_lengths(options: dict[str, Any], want: list[int]) -> None:
    method = part("scaffold", options)
    literal = np.array([True, False, False, True, False, True])
    p = np.array([0.1, 0.8, 0.9, 0.0, 0.6, 0.2])
    assert np.flatnonzero(method.place(literal, p)).tolist() == want
