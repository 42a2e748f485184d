"""Which drafts are fed: the best of all sets that hold their parents, and none that don't pay."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, product

import pytest

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DraftBudget
from plait.decoders.speculative.economy import (
    LEAST,
    MARGIN,
    MOST,
    Estimates,
    Record,
    choose,
    is_worthwhile,
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
        chance = rng.choice((LEAST, 0.2, 0.5, 0.8, MOST, MOST))
        tree.add(rng.randrange(ROOT, node), node, "any", chance, chance)
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
    trees: Sequence[DraftTree], kept: Sequence[Sequence[int]], room: DraftBudget, costs: CostCurve
) -> float:
    rows = room.fed + sum(map(len, kept))
    tokens = len(trees) + sum(
        tree.survivals()[node] for tree, nodes in zip(trees, kept, strict=True) for node in nodes
    )
    return tokens / float(costs.seconds(rows)[rows])


@pytest.mark.parametrize("seed", range(40))
def test_no_set_that_holds_its_parents_is_faster(seed: int) -> None:
    rng = random.Random(seed)
    trees, room = random_offers(rng, 4)
    costs = random_curve(rng)
    have = choose(trees, [False] * len(trees), room, costs)
    plain = pace(trees, [()] * len(trees), room, costs)
    best = max(
        pace(trees, kept, room, costs)
        for kept in product(*(list(closed_sets(tree)) for tree in trees))
        if sum(map(len, kept)) <= room.drafts
    )
    want = best if best >= (1 + MARGIN) * plain * (1 + 1e-12) else plain
    assert pace(trees, have, room, costs) == pytest.approx(want)
    assert sum(map(len, have)) <= room.drafts


@pytest.mark.parametrize("seed", range(40))
def test_what_is_kept_holds_its_parents(seed: int) -> None:
    rng = random.Random(seed)
    trees, room = random_offers(rng, 40)
    always = [rng.random() < 0.3 for _ in trees]
    kept = choose(trees, always, room, random_curve(rng))
    assert sum(map(len, kept)) <= room.drafts
    for tree, nodes in zip(trees, kept, strict=True):
        assert list(nodes) == sorted(set(nodes))
        assert is_closed(tree, nodes)


@pytest.mark.parametrize("others", [0, 1, 8])
@pytest.mark.parametrize("seed", range(60))
def test_where_nothing_is_worthwhile_nothing_is_kept(seed: int, others: int) -> None:
    """Also on curves with steps, where one row costs much and the next seven nothing."""
    rng = random.Random(seed)
    trees, room = random_offers(rng, 12)
    room = DraftBudget(room.drafts, room.fed + others)
    costs = random_curve(rng)
    kept = choose(trees, [False] * len(trees), room, costs, others)
    assert not any(kept) or is_worthwhile(len(trees), room, costs, others)


def test_a_step_in_the_curve_is_worth_climbing_whole() -> None:
    costs = CostCurve({8: 1.0, 12: 1.6, 16: 1.6, 64: 9.0})
    room = DraftBudget(100, fed=8)
    assert is_worthwhile(8, room, costs)
    kept = choose([random_chain(3, MOST) for _ in range(8)], [False] * 8, room, costs)
    assert sum(map(len, kept)) == 8
    assert not is_worthwhile(8, DraftBudget(1, fed=8), costs)


def random_chain(length: int, chance: float) -> DraftTree:
    tree = DraftTree()
    for node in range(length):
        tree.add(node - 1, node, "any", chance, chance)
    return tree


def test_nothing_is_fed_where_every_row_costs_the_same() -> None:
    costs = CostCurve()
    for fed in (1, 4, 64):
        assert not is_worthwhile(fed, DraftBudget(64, fed), costs)
        assert choose(
            [random_chain(8, MOST)] * fed, [False] * fed, DraftBudget(64, fed), costs
        ) == ([[]] * fed)


def test_nothing_is_fed_that_will_not_come_true() -> None:
    costs = CostCurve({1: 1.0, 16: 1.05, 64: 2.0})
    assert choose([random_chain(8, LEAST)], [False], DraftBudget(64, 1), costs) == [[]]
    assert choose([random_chain(8, MOST)], [False], DraftBudget(64, 1), costs) == [list(range(8))]


def test_drafts_fade_as_the_batch_fills() -> None:
    costs = CostCurve({1: 1.0, 8: 1.1, 16: 2.0, 32: 4.0, 64: 8.0})
    rows = []
    for batch in (1, 4, 8, 16, 32):
        trees = [random_chain(8, 0.7) for _ in range(batch)]
        kept = choose(trees, [False] * batch, DraftBudget(256, batch), costs)
        rows.append(sum(map(len, kept)) / batch)
    assert rows == sorted(rows, reverse=True)
    assert rows[0] >= 4
    assert rows[-1] == 0


def test_always_takes_what_room_there_is() -> None:
    costs = CostCurve()
    trees = [random_chain(6, 0.5), random_chain(6, 0.5), DraftTree()]
    assert choose(trees, [True] * 3, DraftBudget(8, 3), costs) == [list(range(6)), [0, 1], []]


class Learner:
    """Feeds a chain of one token a step that comes true with some probability."""

    def __init__(self, raw: float, seed: int = 0) -> None:
        self.estimates, self.record, self.raw = Estimates(), Record(), raw
        self.rng = random.Random(seed)

    @property
    def chance(self) -> float:
        return self.estimates.chance("s", self.raw, self.record)

    def step(self, truth: float, count: int = 1) -> None:
        for _ in range(count):
            self.idle()
            tree = DraftTree()
            tree.add(ROOT, 7, "s", self.chance, self.raw)
            is_right = self.rng.random() < truth
            self.estimates.learn(tree, [0, 1] if is_right else [0], self.record, VOCAB)

    def idle(self, count: int = 1) -> None:
        for _ in range(count):
            self.estimates.fade()
            self.record.fade()


@pytest.mark.parametrize("raw", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("truth", [0.05, 0.5, 0.95])
def test_estimates_come_to_the_truth(raw: float, truth: float) -> None:
    learner, found = Learner(raw), list[float]()
    for _ in range(2000):
        learner.step(truth)
        found.append(learner.chance)
    assert sum(found[-1000:]) / 1000 == pytest.approx(truth, abs=0.05)
    assert all(LEAST <= chance <= MOST for chance in found)


def test_estimates_follow_a_truth_that_turns() -> None:
    learner = Learner(0.8)
    learner.step(0.95, 500)
    learner.step(0.05, 200)
    assert learner.chance < 0.15
    learner.step(0.95, 200)
    assert learner.chance > 0.75


def test_estimates_recover_where_nothing_is_tried() -> None:
    """A drafter that was never right is asked again some day: its own word counts once more."""
    learner = Learner(0.8)
    learner.step(0.0, 500)
    low = learner.chance
    assert low < 0.02
    learner.idle(200)
    assert low < learner.chance < 0.1
    learner.idle(10_000)
    assert learner.chance == pytest.approx(0.8, abs=0.01)


def test_a_sequence_learns_for_itself() -> None:
    learner = Learner(0.5)
    learner.step(0.5, 500)
    elsewhere, learner.record = learner.record, Record()
    learner.step(0.0, 12)
    assert learner.chance < 0.3
    assert learner.estimates.chance("s", 0.5, elsewhere) > 0.4


def test_only_rows_that_were_reached_teach() -> None:
    tree, record, estimates = random_chain(3, 0.5), Record(), Estimates()
    estimates.learn(tree, [0, 1], record, VOCAB)  # the first came true, the second did not
    assert record.right["any"] == 1.0
    assert record.expected["any"] == pytest.approx(1.0, abs=0.3)
    beyond = DraftTree()
    beyond.add(ROOT, VOCAB, "p", 0.5, 0.5)
    estimates.learn(beyond, [0], record, VOCAB)
    assert "p" not in record.right


def test_any_number_is_a_chance() -> None:
    estimates = Estimates()
    for raw in (0.0, 1.0):
        assert LEAST <= estimates.chance("s", raw, Record()) <= MOST
