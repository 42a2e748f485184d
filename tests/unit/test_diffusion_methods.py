"""Every unmasking method on vectors made by hand; what it takes and what it is refused with."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from plait.decoders.contract.registry import MethodError, compose
from plait.decoders.diffusion.methods import METHODS
from plait.decoders.diffusion.protocols import STATISTICS, StepView, top_k
from plait.decoders.diffusion.selectors.learn2pd import FILE, read_filters
from tests.fixtures.step_views import part, view_of

P = [0.5, 0.95, 0.8, 0.99, 0.3]
NEEDS_A_FILE = ("learn2pd", "ada-block")
PARTS = {"selector", "scorer", "window", "stopper", "verifier", "cache", "scaffold", "constraint"}
# What step.py says can't go together: pairs of public names.
IMPOSSIBLE = {
    *(
        frozenset({one, cache})
        for one in ("free-dave", "wino")
        for cache in ("prefix-cache", "dual-cache", "dkv-cache", "recap")
    ),
    frozenset({"free-dave", "wino"}),
    *(frozenset({"scaffold", other}) for other in ("wino", "dingo", "marginal")),
    frozenset({"d-parallel", "credit"}),
}


def settled(name: str, view: StepView, memory: Any = None, **options: Any) -> list[int]:
    """Return the positions that a selector chooses."""
    selection = part(name, options).select(view, memory)
    return [int(hole) for hole in view.positions[selection.unmask]]


def test_best_breaks_ties_to_the_left() -> None:
    scores = np.array([0.2, 0.7, 0.7, 0.1, 0.7])
    assert np.flatnonzero(top_k(scores, 2)).tolist() == [1, 2]
    assert np.flatnonzero(top_k(scores, 9)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, [3]),
        ({"tokens_per_step": 3}, [1, 2, 3]),
        ({"tokens_per_step": 9}, [0, 1, 2, 3, 4]),
        ({"strategy": "left_to_right"}, [0]),
        ({"strategy": "margin"}, [1]),
        ({"strategy": "entropy", "tokens_per_step": 2}, [0, 4]),
    ],
)
def test_static(options: dict[str, Any], want: list[int]) -> None:
    view = view_of(P, p2=[0.4, 0.01, 0.1, 0.5, 0.2], entropy=[0.1, 0.5, 0.4, 0.3, 0.2])
    assert settled("static", view, **options) == want


def test_random_order_depends_on_seed_sequence_and_position_alone() -> None:
    method, view = part("random"), view_of(P)
    scores = method.score(view)
    fewer = view_of(P[:2], positions=[1, 4], step=3)
    assert method.score(fewer).tolist() == scores[[1, 4]].tolist()
    assert len(set(scores.tolist())) == 5
    keys = ((0, 1), (1, 0), (-(2**63), 0), (2**63 - 1, 2**31))
    others = [method.score(replace(view, noise_key=key)).tolist() for key in keys]
    assert scores.tolist() not in others
    assert len(settled("random", view, tokens_per_step=2)) == 2


def test_random_orders_are_equally_likely() -> None:
    method, counts = part("random"), dict.fromkeys(range(6), 0)
    view = view_of(P[:3])
    for seed in range(3000):
        order = np.argsort(method.score(replace(view, noise_key=(seed, 0))))
        counts[int(order[0]) * 2 + int(order[1] > order[2])] += 1
    assert max(abs(n - 500) for n in counts.values()) < 4 * (3000 * 1 / 6 * 5 / 6) ** 0.5


@pytest.mark.parametrize(
    ("name", "options", "want"),
    [
        ("threshold", {}, [1, 3]),
        ("threshold", {"threshold": 0.95}, [1, 3]),  # what equals the bar passes
        ("threshold", {"threshold": 1.5}, []),
        ("dynamic", {"threshold": 0.9, "tokens_per_step": 2}, [1, 3]),
        ("dynamic", {"threshold": 0.9, "tokens_per_step": 3}, [1, 2, 3]),
        # (n + 1) * (1 - c): 0.02, 0.15, 0.8, 2.5, 4.2
        ("factor", {"factor": 0.79}, [1, 3]),
        ("factor", {"factor": 0.81}, [1, 2, 3]),
        ("factor", {"factor": 0.15}, [3]),
        ("factor", {"factor": 3.0}, [0, 1, 2, 3]),
    ],
)
def test_bars_on_probability(name: str, options: dict[str, Any], want: list[int]) -> None:
    assert settled(name, view_of(P), **options) == want


@pytest.mark.parametrize(
    ("bound", "want"),
    [(0.0, [1]), (0.1, [1, 3]), (0.29, [1, 3]), (0.31, [0, 1, 3]), (5.0, [0, 1, 2, 3])],
)
def test_entropy_bound_leaves_the_greatest_out(bound: float, want: list[int]) -> None:
    view = view_of(P[:4], entropy=[0.7, 0.1, 0.9, 0.2])
    assert settled("entropy-bound", view, bound=bound) == want


def test_entropy_bound_in_order_of_confidence() -> None:
    # order 2, 1, 0: 0, then min(0.4, 0.9), then min(0.1, 0.9)
    view = view_of([0.3, 0.5, 0.7], entropy=[0.1, 0.4, 0.9])
    assert settled("entropy-bound", view, order="confidence", bound=0.45) == [1, 2]
    assert settled("entropy-bound", view, order="confidence", bound=0.5) == [0, 1, 2]


def test_d_parallel() -> None:
    view = view_of(P[:3], entropy=[0.5, 0.51, 0.1])
    assert settled("d-parallel", view) == [0, 2]
    assert settled("d-parallel", view, threshold=0.05) == []
    assert part("d-parallel").score(view).argmax() == 2


def test_local_leap_lowers_the_bar_near_anchors() -> None:
    view = view_of([0.8, 0.95, 0.7, 0.8, 0.76], positions=[2, 4, 5, 8, 9])
    assert settled("local-leap", view) == [2, 4, 8]
    assert settled("local-leap", view, radius=1) == [4]
    assert settled("local-leap", view, radius=5, relaxed=0.7) == [2, 4, 5, 8, 9]
    assert settled("local-leap", view_of([0.8, 0.85])) == []


def test_local_leap_with_the_anchors_of_the_step_before() -> None:
    method = part("local-leap", {"anchors": "previous_step"})
    first = method.select(view_of([0.8, 0.95, 0.7], positions=[2, 4, 5]), None)
    assert first.unmask.tolist() == [False, True, False]
    then = method.select(view_of([0.8, 0.8, 0.8], positions=[2, 5, 9]), first.memory)
    assert then.unmask.tolist() == [True, True, False]
    assert not method.select(view_of([0.8, 0.8], positions=[2, 9]), then.memory).unmask.any()


def test_hierarchy_takes_one_of_every_run() -> None:
    view = view_of([0.5, 0.6, 0.3, 0.41, 0.41, 0.95], positions=[1, 2, 5, 7, 8, 9])
    assert settled("hierarchy", view) == [2, 9]
    assert settled("hierarchy", view, threshold=0.96) == [2, 9]
    assert settled("hierarchy", view, low=0.2) == [2, 5, 9]
    assert settled("hierarchy", view_of([0.41, 0.41, 0.3])) == [0]  # the left one of equals


def top_of(*rows: dict[int, float]) -> tuple[Any, Any]:
    ids = np.array([list(row) for row in rows])
    return ids, np.array([list(row.values()) for row in rows])


def test_klass_waits_until_the_law_is_still() -> None:
    method = part("klass", {"threshold": 0.6, "divergence": 0.05})
    still, moving = {1: 0.7, 2: 0.3}, {1: 0.4, 2: 0.6}
    view = view_of([0.7, 0.7], top=top_of(still, still))
    first = method.select(view, None)
    assert first.unmask.tolist() == [True, False]  # nothing passes: the surest
    second = method.select(replace(view, top=top_of(still, moving)), first.memory)
    assert second.memory.stable_steps.tolist() == [1, 0]
    third = method.select(replace(view, top=top_of(still, moving)), second.memory)
    assert third.unmask.tolist() == [True, False]
    assert third.memory.stable_steps.tolist() == [2, 1]
    fourth = method.select(view_of([0.7], positions=[1], top=top_of(moving)), third.memory)
    assert fourth.unmask.tolist() == [True]
    assert fourth.memory.stable_steps.tolist() == [2]


def test_klass_begins_anew_at_a_hole_it_has_not_seen() -> None:
    method, law = part("klass"), {1: 0.95, 2: 0.05}
    one = method.select(view_of([0.95], positions=[4], top=top_of(law)), None)
    two = method.select(view_of([0.95] * 2, positions=[2, 4], top=top_of(law, law)), one.memory)
    assert two.memory.stable_steps.tolist() == [0, 1]


def test_klass_measures_divergence() -> None:
    method = part("klass", {"divergence": 0.0823})
    before, now = {3: 0.5, 4: 0.5}, {4: 0.7, 3: 0.3}
    exact = 0.7 * np.log(0.7 / 0.5) + 0.3 * np.log(0.3 / 0.5)  # 0.08228
    first = method.select(view_of([0.5], top=top_of(before)), None)
    assert method.select(
        view_of([0.7], top=top_of(now)), first.memory
    ).memory.stable_steps.tolist() == [1]
    tighter = part("klass", {"divergence": exact - 1e-4})
    assert tighter.select(view_of([0.7], top=top_of(now)), first.memory).memory.stable_steps == [0]


def filter_tensors(size: int, bias: float, width: int = 3) -> dict[str, Any]:
    """Return a filter that passes confidences on, shifted."""
    eye = np.eye(size, dtype=np.float32)
    return {
        f"block{size}.0.weight": eye,
        f"block{size}.0.bias": np.zeros(size, dtype=np.float32),
        f"block{size}.2.weight": 10 * eye,
        f"block{size}.2.bias": np.full(size, bias, dtype=np.float32),
    }


def test_learn2pd_reads_its_filter(tmp_path: Path) -> None:
    save_file(filter_tensors(4, -5.0) | filter_tensors(8, -50.0), tmp_path / FILE)
    method = part("learn2pd", {"threshold": 0.9}, folder=tmp_path, block_size=4)
    # sigmoid(10 c - 5) > 0.9 where c > 0.72
    view = view_of([0.8, 0.6, 0.7], positions=[5, 6, 7], start=4, block_p=[0.1, 0.8, 0.6, 0.7])
    assert method.select(view, None).unmask.tolist() == [True, False, False]
    more = view_of([0.73, 0.8], positions=[0, 2], block_p=[0.73, 0.1, 0.8])  # a block of 3
    assert method.select(more, None).unmask.tolist() == [True, True]
    longer = view_of([0.8] * 9, block_p=[0.8] * 9)
    assert np.count_nonzero(method.select(longer, None).unmask) == 1


def test_learn2pd_is_refused_without_its_filter(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(MethodError, match=FILE):
            part("learn2pd", folder=folder)
    save_file(filter_tensors(4, 0.0), tmp_path / FILE)
    with pytest.raises(MethodError, match="blocks of 4, not 32"):
        part("learn2pd", folder=tmp_path, block_size=32)
    crooked = filter_tensors(4, 0.0) | {"block4.2.bias": np.zeros(3, dtype=np.float32)}
    with pytest.raises(ValueError, match="blocks of 4"):
        read_filters(crooked)


def test_wino_opens_what_the_shadow_doubts() -> None:
    method = part("wino")
    first = method.select(view_of([0.9, 0.8, 0.75, 0.2, 0.1], leave_one_out=[np.nan] * 5), None)
    assert first.unmask.tolist() == [True, True, True, False, False]
    assert first.remask == ()
    shadow = [0.5, 0.95, 0.4, np.nan, np.nan]
    second = method.select(
        view_of([0.9, 0.8], positions=[3, 4], stop=5, leave_one_out=shadow), first.memory
    )
    assert second.unmask.tolist() == [True, True]
    assert second.remask == (2, 0)  # the worst first, fewer than the three of before
    shadow = [np.nan, 0.1, np.nan, 0.2, 0.3]
    third = method.select(
        view_of([0.9, 0.8], positions=[0, 2], stop=5, leave_one_out=shadow), second.memory
    )
    assert third.remask == (1,)


def test_wino_never_opens_more_than_it_gains() -> None:
    method = part("wino")
    memory = method.select(view_of([0.9, 0.1], stop=5, leave_one_out=[np.nan] * 5), None).memory
    shadow = [0.1, np.nan, np.nan, np.nan, np.nan]
    view = view_of([0.9] * 4, positions=[1, 2, 3, 4], leave_one_out=shadow, start=0)
    assert method.select(view, memory).remask == ()  # one was settled: nothing to spare
    alone = method.select(replace(view, p=np.array([0.9, 0.1, 0.1, 0.1])), memory)
    assert alone.remask == ()


def test_wino_leaves_what_others_settled() -> None:
    method = part("wino")
    first = method.select(
        view_of([0.9, 0.8], positions=[2, 3], stop=6, leave_one_out=[0.0] * 6), None
    )
    then = view_of(
        [0.9, 0.8], positions=[4, 5], leave_one_out=[0.0, 0.0, 0.1, 0.95, np.nan, np.nan]
    )
    assert method.select(then, first.memory).remask == (2,)


def test_wino_has_a_cap() -> None:
    view = view_of([0.9] * 10, leave_one_out=[np.nan] * 10)
    assert settled("wino", view) == list(range(7))
    view = view_of([0.9] * 40, leave_one_out=[np.nan] * 40)
    assert settled("wino", view) == list(range(20))
    view = view_of([0.9] * 6, leave_one_out=[np.nan] * 6)
    assert settled("wino", view) == list(range(5))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_is_described_and_buildable(method: Any) -> None:
    assert method.kind == "unmasker"
    assert method.part in PARTS
    assert method.summary.endswith(".")
    assert "arXiv" in method.source
    assert "canvas" in method.needs
    method.options()  # defaults are complete
    for preset in method.presets:
        compose({"unmasker": {"name": method.name, "preset": preset}}, "unmasker")
    if method.name not in NEEDS_A_FILE:
        built = method.make(method.options(), spec=None, folder=None)
        assert getattr(built, "needs", frozenset()) <= STATISTICS


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "threshold", "threshold": -0.1},
        {"name": "threshold", "bar": 0.9},
        {"name": "static", "tokens_per_step": 0},
        {"name": "static", "strategy": "luck"},
        {"name": "local-leap", "radius": -1},
        {"name": "free-dave", "width": 0},
        {"name": "credit", "fade": 1.5},
        {"name": "klass", "preset": "nonesuch"},
        "nonesuch",
    ],
)
def test_bad_options_are_refused(bad: Any) -> None:
    with pytest.raises(MethodError) as error:
        compose({"unmasker": bad}, "unmasker")
    assert error.value.param.startswith("decoding.unmasker")


def test_exactly_the_impossible_pairs_are_refused() -> None:
    refused = set()
    for one, other in combinations(METHODS, 2):
        for pair in ((one, other), (other, one)):
            try:
                compose({"unmasker": [method.name for method in pair]}, "unmasker")
            except MethodError as error:
                assert one.name in str(error)
                assert other.name in str(error)
                refused.add(frozenset({one.name, other.name}))
    same_part = {
        frozenset({one.name, other.name})
        for one, other in combinations(METHODS, 2)
        if one.part == other.part
    }
    assert refused == IMPOSSIBLE | same_part


def test_a_long_chain_composes() -> None:
    names = ["ada-block", "credit", "local-leap", "eotp", "free-dave"]
    assert [c.method.name for c in compose({"unmasker": names}, "unmasker")] == names
