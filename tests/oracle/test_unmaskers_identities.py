"""What methods have in common: with one option at its edge, one method is another.

Source: the table of identities in the literature's own terms; each holds for whole decodings of a
small coupled model, that is for tokens and for the step in which each is settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from plait.decoders.diffusion.protocols import Floats, Selection, StepView, top_k
from plait.decoders.diffusion.selectors.learn2pd import Learn2pd, Learn2pdOptions
from tests.fixtures.step_views import VOCAB, part, random_view, view_of_logits

SIZE, MODELS = 12, 25
Steps = list[dict[int, int]]  # what each step has settled: position -> token


class Coupled:
    """Logits that every settled token shifts: sums of pair terms, drawn once."""

    def __init__(self, seed: int, coupling: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.base = rng.normal(size=(SIZE, VOCAB)) * 2
        self.pairs = rng.normal(size=(SIZE, VOCAB, SIZE, VOCAB)) * coupling

    def logits(self, settled: dict[int, int]) -> Floats:
        """Return [SIZE, VOCAB]."""
        terms = [self.pairs[position, token] for position, token in settled.items()]
        logits: Floats = np.sum([self.base, *terms], axis=0)
        return logits


def decode(model: Coupled, selector: Any, scorer: Any = None) -> Steps:
    """Settle all holes greedily; one block."""
    settled: dict[int, int] = {}
    memories: list[Any] = [None, None]
    steps: Steps = []
    while len(settled) < SIZE:
        logits = model.logits(settled)
        holes = np.array([i for i in range(SIZE) if i not in settled])
        view = view_of_logits(logits, holes, step=len(steps))
        if scorer is not None:
            bias = scorer.bias(view, memories[1])
            memories[1] = bias.memory
            logits = logits.copy()
            np.add.at(logits, (holes[bias.rows], bias.tokens), bias.deltas)
            view = view_of_logits(logits, holes, step=len(steps))
        selection = selector.select(view, memories[0])
        memories[0] = selection.memory
        chosen = selection.unmask if selection.unmask.any() else top_k(selector.score(view), 1)
        steps.append(dict(zip(holes[chosen].tolist(), view.tokens[chosen].tolist(), strict=True)))
        settled |= steps[-1]
    return steps


def equal(one: Any, other: Any, *, scorers: tuple[Any, Any] = (None, None)) -> bool:
    """Tell whether two selectors decode every model alike; they must not always take one step."""
    runs = [
        (decode(Coupled(seed), one, scorers[0]), decode(Coupled(seed), other, scorers[1]))
        for seed in range(MODELS)
    ]
    assert any(len(have) > 2 for have, _ in runs)
    return all(have == want for have, want in runs)


STATIC, THRESHOLD = part("static"), part("threshold", {"threshold": 0.6})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("threshold", {"threshold": 1.01}),
        ("factor", {"factor": 0.0}),
        ("dynamic", {"threshold": 1.01}),
        ("entropy-bound", {"bound": 0.0, "order": "confidence"}),
        ("local-leap", {"anchor": 1.01}),
        ("hierarchy", {"threshold": 1.01, "low": 1.0}),
        ("klass", {"divergence": 0.0}),
        ("static", {"preset": "llada"}),
    ],
)
def test_equals_static_one_token_a_step(name: str, options: dict[str, Any]) -> None:
    assert equal(part(name, options), STATIC)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dynamic", {"threshold": 0.6}),
        ("local-leap", {"anchor": 0.6, "relaxed": 0.6}),
        ("local-leap", {"anchor": 0.6, "relaxed": 0.1, "radius": 0}),
        ("hierarchy", {"threshold": 0.6, "low": 1.0}),
    ],
)
def test_equals_threshold(name: str, options: dict[str, Any]) -> None:
    assert equal(part(name, options), THRESHOLD)


@pytest.mark.parametrize(
    ("name", "options"),
    [("entropy-bound", {"bound": 0.0}), ("d-parallel", {"threshold": 0.0})],
)
def test_equals_static_by_entropy(name: str, options: dict[str, Any]) -> None:
    assert equal(part(name, options), part("static", {"strategy": "entropy"}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("threshold", {"threshold": 0.0}),
        ("factor", {"factor": 1e9}),
        ("entropy-bound", {"bound": 1e9}),
        ("d-parallel", {"threshold": 1e9}),
        ("static", {"tokens_per_step": SIZE}),
        ("random", {"tokens_per_step": SIZE}),
        ("local-leap", {"anchor": 0.0}),
        ("local-leap", {"anchor": 0.2, "relaxed": 0.0, "radius": SIZE}),
    ],
)
def test_all_in_one_step(name: str, options: dict[str, Any]) -> None:
    assert all(len(decode(Coupled(seed), part(name, options))) == 1 for seed in range(5))


def test_left_to_right_goes_from_left_to_right() -> None:
    steps = decode(Coupled(0), part("static", {"strategy": "left_to_right"}))
    assert [list(step) for step in steps] == [[i] for i in range(SIZE)]


def test_local_leap_never_settles_less_than_threshold() -> None:
    rng = np.random.default_rng(2)
    leap, bar = part("local-leap"), part("threshold")
    more = 0
    for _ in range(300):
        view = random_view(rng)
        have, want = leap.select(view, None).unmask, bar.select(view, None).unmask
        assert (have | ~want).all()
        more += int(have.sum() > want.sum())
    assert more > 20


def test_hierarchy_with_one_run_equals_threshold() -> None:
    rng = np.random.default_rng(4)
    one, other = part("hierarchy", {"threshold": 0.9, "low": 0.2}), part("threshold")
    for _ in range(100):
        view = view_of_logits(rng.normal(size=(8, VOCAB)) * 3, np.arange(8))
        have, want = one.select(view, None).unmask, other.select(view, None).unmask
        want = want if want.any() else top_k(view.p, 1)
        assert have.tolist() == want.tolist()


def test_klass_that_minds_no_movement_equals_threshold_from_its_history_on() -> None:
    rng = np.random.default_rng(6)
    klass = part("klass", {"threshold": 0.6, "divergence": float("inf"), "history": 2})
    for _ in range(50):
        memory, holes = None, np.arange(10)
        for step in range(5):
            view = view_of_logits(rng.normal(size=(10, VOCAB)) * 3, holes)
            selection = klass.select(view, memory)
            memory = selection.memory
            want = THRESHOLD.select(view, None).unmask
            want = want if step >= 2 and want.any() else top_k(view.p, 1)
            assert selection.unmask.tolist() == want.tolist()


def test_wino_that_verifies_nothing_is_a_capped_threshold() -> None:
    wino = part("wino", {"draft": 0.6, "verify": 0.0})
    rng = np.random.default_rng(8)
    for _ in range(100):
        logits = rng.normal(size=(20, VOCAB)) * 3
        view = replace(view_of_logits(logits, np.arange(20)), leave_one_out=np.full(20, np.nan))
        cap = min(14, max(1, int((view.p >= 0.6).sum())))
        assert wino.select(view, None).unmask.tolist() == top_k(view.p, cap).tolist()
    assert equal(wino, _Capped())


class _Capped:
    def score(self, view: StepView) -> Floats:
        return view.p

    def select(self, view: StepView, memory: Any) -> Selection:
        passing = THRESHOLD.select(view, None).unmask
        cap = min(max(int(0.7 * len(view.positions)), 5), 20)
        return Selection(passing & top_k(view.p, cap))


@pytest.mark.parametrize("name", ["static", "threshold", "local-leap", "entropy-bound", "klass"])
def test_credit_of_no_weight_changes_nothing(name: str) -> None:
    host = part(name)
    assert equal(host, host, scorers=(part("credit", {"weight": 0.0}), None))
    models = [Coupled(seed) for seed in range(MODELS)]
    counted = part("credit", {"weight": 5.0})
    assert any(decode(model, host, counted) != decode(model, host) for model in models)


def filter_of(bias: float) -> Learn2pd:
    """Return a filter that gives every position the same answer."""
    layers = [(np.zeros((SIZE, SIZE)), np.full(SIZE, bias))]
    return Learn2pd(Learn2pdOptions(), {SIZE: layers})


def test_learn2pd_that_rejects_all_is_static() -> None:
    assert equal(filter_of(-40.0), STATIC)
    assert all(len(decode(Coupled(seed), filter_of(40.0))) == 1 for seed in range(5))


class _Oracle:
    """Extremely greedy: settles exactly what agrees with the outcome of static decoding."""

    def __init__(self, outcome: dict[int, int]) -> None:
        self.outcome = outcome

    def score(self, view: StepView) -> Floats:
        return view.p

    def select(self, view: StepView, memory: Any) -> Selection:
        want = [self.outcome[hole] for hole in view.positions.tolist()]
        return Selection(view.tokens == np.array(want))


class _Knowing(Learn2pd):
    """The filter itself, its answers replaced by the truth."""

    __slots__ = ()
    outcome: ClassVar[dict[int, int]] = {}

    def _accept(self, view: StepView) -> Floats:
        accepted = np.zeros(view.stop - view.start)
        accepted[view.positions - view.start] = _Oracle(self.outcome).select(view, None).unmask
        return accepted


def test_learn2pd_that_knows_the_outcome_reproduces_it_in_fewer_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reproduced = 0
    for seed in range(MODELS):
        model = Coupled(seed, coupling=0.05)
        static = decode(model, STATIC)
        outcome = _merged(static)
        monkeypatch.setattr(_Knowing, "outcome", outcome)
        have, greedy = decode(model, _Knowing(Learn2pdOptions(), {})), _Oracle(outcome)
        assert len(have) < len(static)
        # the surest hole is settled in any case, right or wrong; all others are right
        assert all(len(step.items() - outcome.items()) <= 1 for step in have)
        if _merged(have) == outcome:
            reproduced += 1
            assert have == decode(model, greedy)
    assert reproduced > 0.8 * MODELS


def _merged(steps: Sequence[dict[int, int]]) -> dict[int, int]:
    return {position: token for step in steps for position, token in step.items()}


def test_ada_block_without_a_delimiter_keeps_fixed_blocks() -> None:
    rng = np.random.default_rng(10)
    window = part("ada-block", {"delimiter_ids": [VOCAB + 1]}, block_size=4)
    for _ in range(50):
        view = view_of_logits(rng.normal(size=(9, VOCAB)) * 3, np.arange(9))
        assert window.length(view) == 4
    never = part("ada-block", {"delimiter_ids": list(range(VOCAB)), "threshold": 1.5}, block_size=4)
    assert never.length(view) == 4


def test_reading_a_hole_again_changes_no_answer() -> None:
    """Methods are functions: the same view and memory give the same selection."""
    rng = np.random.default_rng(12)
    for name in ("klass", "wino", "local-leap", "random"):
        method = part(name)
        view = replace(random_view(rng), leave_one_out=np.full(12, np.nan))
        memory = method.select(view, None).memory
        one, two = method.select(view, memory), method.select(view, memory)
        assert one.unmask.tolist() == two.unmask.tolist()
        assert one.remask == two.remask
