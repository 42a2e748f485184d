"""Which drafts are fed: the best of all sets that hold their parents, and none that don't pay."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, product

import pytest

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DraftBudget
from plait.decoders.speculative.draft_budget import (
    MAX_PROB,
    MIN_GAIN,
    MIN_PROB,
    AcceptanceEstimates,
    SequenceAcceptance,
    can_pay,
    select_nodes,
)
from plait.decoders.speculative.tree import ROOT, DraftTree

VOCAB = 1000


def random_curve(rng: random.Random) -> CostCurve:
    """Flat, steep, with steps: anything that does not fall."""
    seconds, measured = rng.uniform(0.5, 2.0), {}
    for rows in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64):
        measured[rows] = seconds
        seconds *= rng.choice((1.0, 1.0, 1.05, 1.3, 2.0))
    return CostCurve(measured)


def random_tree(rng: random.Random, size: int) -> DraftTree:
    tree = DraftTree()
    for node in range(size):
        acceptance_prob = rng.choice((MIN_PROB, 0.2, 0.5, 0.8, MAX_PROB, MAX_PROB))
        tree.add(rng.randrange(ROOT, node), node, "any", acceptance_prob, acceptance_prob)
    return tree


def random_offers(rng: random.Random, nodes: int) -> tuple[list[DraftTree], DraftBudget]:
    sizes = [rng.randint(0, nodes) for _ in range(rng.randint(1, 3))]
    trees = [random_tree(rng, size) for size in sizes]
    return trees, DraftBudget(rng.randint(0, 2 * nodes), fed=len(trees) + rng.choice((0, 0, 3, 20)))


def is_closed(tree: DraftTree, nodes: Sequence[int]) -> bool:
    return all(tree.parents[node] in (ROOT, *nodes) for node in nodes)


def closed_sets(tree: DraftTree) -> Iterator[tuple[int, ...]]:
    for count in range(len(tree) + 1):
        yield from (s for s in combinations(range(len(tree)), count) if is_closed(tree, s))


def pace(
    trees: Sequence[DraftTree], kept: Sequence[Sequence[int]], budget: DraftBudget, costs: CostCurve
) -> float:
    rows = budget.fed + sum(map(len, kept))
    tokens = len(trees) + sum(
        tree.path_probs()[node] for tree, nodes in zip(trees, kept, strict=True) for node in nodes
    )
    return tokens / float(costs.seconds(rows)[rows])


@pytest.mark.parametrize("seed", range(40))
def test_no_set_that_holds_its_parents_is_faster(seed: int) -> None:
    rng = random.Random(seed)
    trees, budget = random_offers(rng, 4)
    costs = random_curve(rng)
    have = select_nodes(trees, [False] * len(trees), budget, costs)
    plain = pace(trees, [()] * len(trees), budget, costs)
    best = max(
        pace(trees, kept, budget, costs)
        for kept in product(*(list(closed_sets(tree)) for tree in trees))
        if sum(map(len, kept)) <= budget.drafts
    )
    want = best if best >= (1 + MIN_GAIN) * plain * (1 + 1e-12) else plain
    assert pace(trees, have, budget, costs) == pytest.approx(want)
    assert sum(map(len, have)) <= budget.drafts


@pytest.mark.parametrize("seed", range(40))
def test_what_is_kept_holds_its_parents(seed: int) -> None:
    rng = random.Random(seed)
    trees, budget = random_offers(rng, 40)
    always = [rng.random() < 0.3 for _ in trees]
    kept = select_nodes(trees, always, budget, random_curve(rng))
    assert sum(map(len, kept)) <= budget.drafts
    for tree, nodes in zip(trees, kept, strict=True):
        assert list(nodes) == sorted(set(nodes))
        assert is_closed(tree, nodes)


@pytest.mark.parametrize("others", [0, 1, 8])
@pytest.mark.parametrize("seed", range(60))
def test_where_nothing_is_worthwhile_nothing_is_kept(seed: int, others: int) -> None:
    """Also on curves with steps, where one row costs much and the next seven nothing."""
    rng = random.Random(seed)
    trees, budget = random_offers(rng, 12)
    budget = DraftBudget(budget.drafts, budget.fed + others)
    costs = random_curve(rng)
    kept = select_nodes(trees, [False] * len(trees), budget, costs, others)
    assert not any(kept) or can_pay(len(trees), budget, costs, others)


def test_a_step_in_the_curve_is_worth_climbing_whole() -> None:
    costs = CostCurve({8: 1.0, 12: 1.6, 16: 1.6, 64: 9.0})
    budget = DraftBudget(100, fed=8)
    assert can_pay(8, budget, costs)
    kept = select_nodes([random_chain(3, MAX_PROB) for _ in range(8)], [False] * 8, budget, costs)
    assert sum(map(len, kept)) == 8
    assert not can_pay(8, DraftBudget(1, fed=8), costs)


def random_chain(length: int, acceptance_prob: float) -> DraftTree:
    tree = DraftTree()
    for node in range(length):
        tree.add(node - 1, node, "any", acceptance_prob, acceptance_prob)
    return tree


def test_nothing_is_fed_where_every_row_costs_the_same() -> None:
    costs = CostCurve()
    for fed in (1, 4, 64):
        assert not can_pay(fed, DraftBudget(64, fed), costs)
        assert select_nodes(
            [random_chain(8, MAX_PROB)] * fed, [False] * fed, DraftBudget(64, fed), costs
        ) == ([[]] * fed)


def test_nothing_is_fed_that_will_not_come_true() -> None:
    costs = CostCurve({1: 1.0, 16: 1.05, 64: 2.0})
    assert select_nodes([random_chain(8, MIN_PROB)], [False], DraftBudget(64, 1), costs) == [[]]
    assert select_nodes([random_chain(8, MAX_PROB)], [False], DraftBudget(64, 1), costs) == [
        list(range(8))
    ]


def test_drafts_fade_as_the_batch_fills() -> None:
    costs = CostCurve({1: 1.0, 8: 1.1, 16: 2.0, 32: 4.0, 64: 8.0})
    rows = []
    for batch in (1, 4, 8, 16, 32):
        trees = [random_chain(8, 0.7) for _ in range(batch)]
        kept = select_nodes(trees, [False] * batch, DraftBudget(256, batch), costs)
        rows.append(sum(map(len, kept)) / batch)
    assert rows == sorted(rows, reverse=True)
    assert rows[0] >= 4
    assert rows[-1] == 0


def test_always_takes_what_room_there_is() -> None:
    costs = CostCurve()
    trees = [random_chain(6, 0.5), random_chain(6, 0.5), DraftTree()]
    assert select_nodes(trees, [True] * 3, DraftBudget(8, 3), costs) == [list(range(6)), [0, 1], []]


class Learner:
    """Feeds a chain of one token a step that comes true with some probability."""

    def __init__(self, stated_prob: float, seed: int = 0) -> None:
        self.estimates, self.record, self.stated_prob = (
            AcceptanceEstimates(),
            SequenceAcceptance(),
            stated_prob,
        )
        self.rng = random.Random(seed)

    @property
    def acceptance_prob(self) -> float:
        return self.estimates.acceptance_prob("s", self.stated_prob, self.record)

    def step(self, truth: float, count: int = 1) -> None:
        for _ in range(count):
            self.idle()
            tree = DraftTree()
            tree.add(ROOT, 7, "s", self.acceptance_prob, self.stated_prob)
            is_right = self.rng.random() < truth
            self.estimates.learn(tree, [0, 1] if is_right else [0], self.record, VOCAB)

    def idle(self, count: int = 1) -> None:
        for _ in range(count):
            self.estimates.decay()
            self.record.decay()


@pytest.mark.parametrize("stated_prob", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("truth", [0.05, 0.5, 0.95])
def test_estimates_come_to_the_truth(stated_prob: float, truth: float) -> None:
    learner, found = Learner(stated_prob), list[float]()
    for _ in range(2000):
        learner.step(truth)
        found.append(learner.acceptance_prob)
    assert sum(found[-1000:]) / 1000 == pytest.approx(truth, abs=0.05)
    assert all(MIN_PROB <= acceptance_prob <= MAX_PROB for acceptance_prob in found)


def test_estimates_follow_a_truth_that_turns() -> None:
    learner = Learner(0.8)
    learner.step(0.95, 500)
    learner.step(0.05, 200)
    assert learner.acceptance_prob < 0.15
    learner.step(0.95, 200)
    assert learner.acceptance_prob > 0.75


def test_estimates_recover_where_nothing_is_tried() -> None:
    """A drafter that was never right is asked again some day: its own word counts once more."""
    learner = Learner(0.8)
    learner.step(0.0, 500)
    low = learner.acceptance_prob
    assert low < 0.02
    learner.idle(200)
    assert low < learner.acceptance_prob < 0.1
    learner.idle(10_000)
    assert learner.acceptance_prob == pytest.approx(0.8, abs=0.01)


def test_a_sequence_learns_for_itself() -> None:
    learner = Learner(0.5)
    learner.step(0.5, 500)
    elsewhere, learner.record = learner.record, SequenceAcceptance()
    learner.step(0.0, 12)
    assert learner.acceptance_prob < 0.3
    assert learner.estimates.acceptance_prob("s", 0.5, elsewhere) > 0.4


def test_luck_of_a_short_sequence_makes_nothing_certain() -> None:
    """What is said of tokens that are right nine times in ten, in sequences that are all alike."""
    learner, found = Learner(0.9), list[float]()
    learner.step(0.9, 300)
    for _ in range(200):
        learner.record = SequenceAcceptance()
        for _ in range(12):
            learner.step(0.9)
            found.append(learner.acceptance_prob)
    assert max(found) < 0.96
    assert sum(found) / len(found) == pytest.approx(0.9, abs=0.03)


def test_only_rows_that_were_reached_teach() -> None:
    tree, record, estimates = random_chain(3, 0.5), SequenceAcceptance(), AcceptanceEstimates()
    estimates.learn(tree, [0, 1], record, VOCAB)  # the first came true, the second did not
    assert record.accepted["any"] == 1.0
    assert record.expected["any"] == pytest.approx(1.0, abs=0.3)
    beyond = DraftTree()
    beyond.add(ROOT, VOCAB, "p", 0.5, 0.5)
    estimates.learn(beyond, [0], record, VOCAB)
    assert "p" not in record.accepted


def test_any_stated_number_gives_a_probability() -> None:
    estimates = AcceptanceEstimates()
    for stated_prob in (0.0, 1.0):
        assert (
            MIN_PROB
            <= estimates.acceptance_prob("s", stated_prob, SequenceAcceptance())
            <= MAX_PROB
        )
