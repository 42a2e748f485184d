"""Selectors and the scorer against plain loops written from the papers' rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log, log1p
from typing import Any

import numpy as np
import pytest

from plait.decoders.diffusion.protocols import StepView
from plait.decoders.diffusion.selectors.learn2pd import Learn2pd, Learn2pdOptions, read_filters
from tests.fixtures.step_views import VOCAB, part, random_view, view_of, view_of_logits

Rule = Callable[..., set[int]]
CASES = 300


def surest(view: StepView, scores: Sequence[float], k: int) -> set[int]:
    """Return the k holes of greatest score, the left one of equals."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return {int(view.positions[i]) for i in ranked[:k]}


def static(view: StepView, *, tokens_per_step: int, strategy: str = "confidence") -> set[int]:
    assert view.p2 is not None
    assert view.entropy is not None
    scores = {
        "confidence": list(view.p),
        "margin": [a - b for a, b in zip(view.p, view.p2, strict=True)],
        "entropy": [-h for h in view.entropy],
        "left_to_right": [-hole for hole in view.positions],
    }[strategy]
    return surest(view, scores, tokens_per_step)


def threshold(view: StepView, *, threshold: float) -> set[int]:
    return {int(i) for i, p in zip(view.positions, view.p, strict=True) if p >= threshold}


def dynamic(view: StepView, *, threshold: float, tokens_per_step: int) -> set[int]:
    passing = {int(i) for i, p in zip(view.positions, view.p, strict=True) if p >= threshold}
    quota = surest(view, list(view.p), tokens_per_step)
    return passing if len(passing) >= tokens_per_step else quota


def factor(view: StepView, *, factor: float) -> set[int]:
    c = sorted(view.p, reverse=True)
    fitting = [n for n in range(1, len(c) + 1) if (n + 1) * (1 - c[n - 1]) < factor]
    return surest(view, list(view.p), max([1, *fitting]))


def entropy_bound(view: StepView, *, bound: float, order: str) -> set[int]:
    assert view.entropy is not None
    scores = [-h for h in view.entropy] if order == "entropy" else list(view.p)
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    count = 1
    for n in range(2, len(ranked) + 1):
        entropies = [view.entropy[i] for i in ranked[:n]]
        if sum(entropies) - max(entropies) <= bound:
            count = n
    return surest(view, scores, count)


def d_parallel(view: StepView, *, threshold: float) -> set[int]:
    assert view.entropy is not None
    return {int(i) for i, h in zip(view.positions, view.entropy, strict=True) if h <= threshold}


def local_leap(view: StepView, *, anchor: float, relaxed: float, radius: int) -> set[int]:
    sure = dict(zip(view.positions.tolist(), view.p.tolist(), strict=True))
    anchors = [i for i, p in sure.items() if p >= anchor]
    near = {i for a in anchors for i in range(a - radius, a + radius + 1)}
    return {i for i, p in sure.items() if p >= anchor or (i in near and p >= relaxed)}


def hierarchy(view: StepView, *, threshold: float, low: float) -> set[int]:
    sure = dict(zip(view.positions.tolist(), view.p.tolist(), strict=True))
    chosen = {i for i, p in sure.items() if p >= threshold}
    run: list[int] = []
    for position in range(view.start, view.stop + 1):
        if position in sure:
            run.append(position)
        elif run:
            best = max(run, key=lambda i: (sure[i], -i))
            chosen |= {best} if sure[best] > low else set()
            run = []
    return chosen


@pytest.mark.parametrize(
    ("name", "rule", "options"),
    [
        ("static", static, {"tokens_per_step": 3}),
        ("static", static, {"tokens_per_step": 2, "strategy": "margin"}),
        ("static", static, {"tokens_per_step": 2, "strategy": "entropy"}),
        ("static", static, {"tokens_per_step": 2, "strategy": "left_to_right"}),
        ("threshold", threshold, {"threshold": 0.8}),
        ("dynamic", dynamic, {"threshold": 0.8, "tokens_per_step": 3}),
        ("factor", factor, {"factor": 0.4}),
        ("factor", factor, {"factor": 1.5}),
        ("entropy-bound", entropy_bound, {"bound": 0.4, "order": "entropy"}),
        ("entropy-bound", entropy_bound, {"bound": 0.9, "order": "confidence"}),
        ("d-parallel", d_parallel, {"threshold": 0.5}),
        ("local-leap", local_leap, {"anchor": 0.9, "relaxed": 0.6, "radius": 2}),
        ("hierarchy", hierarchy, {"threshold": 0.9, "low": 0.7}),
    ],
)
def test_rule(name: str, rule: Rule, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(7)
    method, sizes = part(name, options), set()
    for _ in range(CASES):
        view = random_view(rng)
        have = view.positions[method.select(view, None).unmask]
        assert set(have.tolist()) == rule(view, **options)
        sizes.add(len(have))
    assert len(sizes) > 1 or "tokens_per_step" in options  # the cases tell rules apart


def drifting(rng: np.random.Generator, size: int, steps: int, drift: float) -> list[Any]:
    """Return logits [size, VOCAB] of some steps that move slowly."""
    walks = rng.normal(size=(steps, size, VOCAB)) * drift
    walks[0] = rng.normal(size=(size, VOCAB)) * 3
    return list(np.cumsum(walks, axis=0))


def shrinking(rng: np.random.Generator, size: int, steps: int) -> list[Any]:
    """Return the holes of some steps; some are settled from each to the next."""
    holes = [np.arange(size)]
    for _ in range(steps - 1):
        kept = rng.random(len(holes[-1])) < 0.85
        holes.append(holes[-1][kept] if kept.any() else holes[-1][:1])
    return holes


def softmax(row: Sequence[float]) -> list[float]:
    powers = [exp(x - max(row)) for x in row]
    return [power / sum(powers) for power in powers]


def test_klass_against_dense_laws() -> None:
    rng = np.random.default_rng(11)
    bar, moved, calm = 0.6, 0.02, 0
    for history in (1, 2, 3):
        options = {"threshold": bar, "divergence": moved, "history": history}
        method, memory = part("klass", options), None
        before: list[Any] = []
        for logits, holes in zip(drifting(rng, 40, 6, 0.12), shrinking(rng, 40, 6), strict=True):
            laws = [softmax(row) for row in logits]
            before.append(laws)
            want = set()
            for i in holes.tolist():
                pairs = zip(before[:0:-1], before[-2::-1], strict=True)
                kls = [
                    sum(p * log(p / q) for p, q in zip(a[i], b[i], strict=True)) for a, b in pairs
                ]
                still = len(kls) >= history and max(kls[:history]) < moved
                want |= {i} if still and max(laws[i]) >= bar else set()
            calm += len(want)
            view = view_of_logits(logits, holes)
            selection = method.select(view, memory)
            memory = selection.memory
            want = want or surest(view, view.p.tolist(), 1)
            assert set(view.positions[selection.unmask].tolist()) == want
    assert calm > 20


def test_klass_bounds_the_divergence_of_a_large_vocabulary_from_below() -> None:
    rng = np.random.default_rng(3)
    before, now = (rng.dirichlet(np.full(500, 0.05), size=50) for _ in range(2))
    exact = (now * np.log(np.maximum(now, 1e-300) / np.maximum(before, 1e-300))).sum(axis=1)

    def seen(laws: Any) -> StepView:
        ids = np.argsort(-laws, axis=1)[:, :64]
        top = (ids, np.take_along_axis(laws, ids, axis=1))
        return view_of(laws.max(axis=1).tolist(), top=top)

    for i in range(0, 50, 7):
        method = part("klass", {"divergence": exact[i] * (1 + 1e-9)})
        memory = method.select(seen(before), None).memory
        assert method.select(seen(now), memory).memory.stable_steps[i] == 1


def test_learn2pd_against_loops() -> None:
    rng = np.random.default_rng(5)
    size, inner = 12, 9
    tensors = {
        "block12.0.weight": rng.normal(size=(inner, size)),
        "block12.0.bias": rng.normal(size=inner),
        "block12.2.weight": rng.normal(size=(inner, inner)),
        "block12.2.bias": rng.normal(size=inner),
        "block12.4.weight": rng.normal(size=(size, inner)),
        "block12.4.bias": rng.normal(size=size),
    }
    method = Learn2pd(Learn2pdOptions(threshold=0.7, tokens_per_step=2), read_filters(tensors))
    for _ in range(CASES):
        view = random_view(rng, size=size)
        assert view.block_p is not None
        x = view.block_p.tolist()
        for number in (0, 2, 4):
            weight, bias = (tensors[f"block12.{number}.{what}"] for what in ("weight", "bias"))
            x = [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight.tolist()]
            x = [v + b for v, b in zip(x, bias.tolist(), strict=True)]
            x = [max(v, 0.0) for v in x] if number < 4 else x
        accepted = {i for i in view.positions.tolist() if 1 / (1 + exp(-x[i - view.start])) > 0.7}
        want = accepted | surest(view, view.p.tolist(), 2)
        assert set(view.positions[method.select(view, None).unmask].tolist()) == want


@pytest.mark.parametrize("tuning_free", [False, True])
def test_credit_against_a_dense_table(tuning_free: bool) -> None:
    rng = np.random.default_rng(13)
    size, steps = 20, 8
    alpha, beta, gamma = 0.65, 0.7, 0.2
    options = {"schedule": "settled_share"} if tuning_free else {}
    method, memory = part("credit", {**options, "slots": VOCAB}), None
    table = [[0.0] * VOCAB for _ in range(size)]
    for logits, holes in zip(
        drifting(rng, size, steps, 0.8), shrinking(rng, size, steps), strict=True
    ):
        if tuning_free:
            alpha = beta = 1 - len(holes) / size
            gamma = 1.0
        view = view_of_logits(logits, holes)
        bias = method.bias(view, memory)
        memory = bias.memory
        have = logits.copy()
        np.add.at(have, (holes[bias.rows], bias.tokens), bias.deltas)
        for i in holes.tolist():
            law = softmax(logits[i])
            table[i] = [beta * c for c in table[i]]
            table[i][law.index(max(law))] += max(law) ** gamma
            want = [x + alpha * log1p(c) for x, c in zip(logits[i], table[i], strict=True)]
            assert have[i] == pytest.approx(want, abs=1e-12)
    assert max(sum(c > 0 for c in row) for row in table) > 2


def test_credit_with_few_slots_forgets_the_least() -> None:
    rng = np.random.default_rng(17)
    few, many = part("credit", {"slots": 2}), part("credit", {"slots": VOCAB})
    memories: list[Any] = [None, None]
    for logits in drifting(rng, 20, 6, 0.8):
        view = view_of_logits(logits, np.arange(20))
        biases = [few.bias(view, memories[0]), many.bias(view, memories[1])]
        memories = [bias.memory for bias in biases]
        for i in range(20):
            two, all_of_them = (
                dict(zip(b.tokens[b.rows == i], b.deltas[b.rows == i], strict=True)) for b in biases
            )
            assert len(two) == min(2, len(two))
            assert two.keys() <= all_of_them.keys()
            assert view.tokens[i] in two


def test_wino_against_a_list() -> None:
    rng = np.random.default_rng(19)
    opened = 0
    for _ in range(60):
        method, memory = part("wino", {"draft": 0.6, "verify": 0.7}), None
        own: dict[int, None] = {}
        last = steps = 0
        holes = set(range(16))
        while holes:
            logits = rng.normal(size=(16, VOCAB)) * 2
            shadow = rng.random(16)
            view = view_of_logits(logits, np.array(sorted(holes)))
            shadow[sorted(holes)] = np.nan
            view = view_of(
                view.p.tolist(),
                positions=view.positions,
                tokens=view.tokens,
                stop=16,
                leave_one_out=shadow,
            )
            cap = min(max(int(0.7 * len(holes)), 5), 20)
            passing = sum(p >= 0.6 for p in view.p)
            settle = surest(view, view.p.tolist(), min(max(1, passing), cap))
            doubted = sorted((i for i in own if shadow[i] < 0.7), key=lambda i: (shadow[i], i))
            reopen = doubted[: max(last - 1, 0)] if len(settle) > 1 else []
            selection = method.select(view, memory)
            memory = selection.memory
            assert set(view.positions[selection.unmask].tolist()) == settle
            assert list(selection.remask) == reopen
            own = dict.fromkeys(sorted((set(own) - set(reopen)) | settle))
            holes, last, steps = (holes - settle) | set(reopen), len(settle), steps + 1
            opened += len(reopen)
        assert steps <= 2 * 16
    assert opened > 100
