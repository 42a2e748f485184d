"""A drafter is called while it gains more than its time costs, and now and then to see."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any, ClassVar

import pytest

from plait.decoders.contract.costs import STALE, CostCurve
from plait.decoders.contract.decoder import DecodeRequest, DraftBudget
from plait.decoders.contract.drafter import Draft, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Choice, Method
from plait.decoders.contract.text import Text
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative import speculator
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.drafter_stats import (
    OUTLIER,
    PROBE_INTERVAL,
    PROBE_SHARE,
    RATE,
    DrafterStats,
    SequenceDrafterStats,
)
from plait.decoders.speculative.speculator import MAX_CHOICES, Speculator

TOKEN = 0.01  # seconds that a token costs without drafts


def spent(stats: DrafterStats, seconds: float, sequences: int = 1) -> DrafterStats:
    stats.add_call(seconds, sequences)
    stats.end_step()
    return stats


def requests(sequence_stats: SequenceDrafterStats, steps: int, accepted: int) -> int:
    """Return how often a drafter is called in so many steps, each call gaining so much."""
    asked = 0
    for _ in range(steps):
        if sequence_stats.is_worth_calling(TOKEN):
            sequence_stats.mark_called()
            sequence_stats.add_gain(accepted)
            asked += 1
    return asked


def test_a_drafter_that_brings_more_than_it_costs_is_always_called() -> None:
    assert requests(SequenceDrafterStats(spent(DrafterStats(), 1.5 * TOKEN)), 200, accepted=2) > 150


@pytest.mark.parametrize(
    ("cost", "steps"), [(0.05, 10), (0.3, 60), (0.9, PROBE_INTERVAL), (40, PROBE_INTERVAL)]
)
def test_a_drafter_that_never_brings_anything_is_probed_only(cost: float, steps: int) -> None:
    """Calls take a share of the time, an expensive drafter has one in PROBE_INTERVAL steps."""
    sequence_stats = SequenceDrafterStats(spent(DrafterStats(), cost * TOKEN))
    requests(sequence_stats, 100, accepted=0)
    assert abs(requests(sequence_stats, 10 * steps, accepted=0) - 10) <= 1


def test_what_costs_next_to_nothing_is_always_called() -> None:
    sequence_stats = SequenceDrafterStats(spent(DrafterStats(), PROBE_SHARE * TOKEN))
    assert requests(sequence_stats, 200, accepted=0) == 200


def test_a_probe_that_succeeds_brings_the_drafter_back() -> None:
    sequence_stats = SequenceDrafterStats(spent(DrafterStats(), TOKEN / 2))
    requests(sequence_stats, 100, accepted=0)
    assert requests(sequence_stats, 4 * PROBE_INTERVAL, accepted=4) > 2 * PROBE_INTERVAL


def test_a_new_sequence_begins_with_what_was_learnt_elsewhere() -> None:
    stats = spent(DrafterStats(), TOKEN / 2)
    requests(SequenceDrafterStats(stats), 100, accepted=0)
    assert not SequenceDrafterStats(stats).is_worth_calling(TOKEN)


def test_seconds_are_those_of_one_sequence_over_all_calls_of_a_step() -> None:
    stats = DrafterStats()
    stats.add_call(0.3, 4)
    stats.add_call(0.1, 2)
    stats.end_step()
    assert stats.seconds == pytest.approx(0.1)
    stats.end_step()  # a step without calls changes nothing
    assert stats.seconds == pytest.approx(0.1)


def test_one_slow_call_does_not_condemn_a_drafter() -> None:
    stats = spent(spent(DrafterStats(), 0.1), 1000.0)
    assert stats.seconds == pytest.approx(0.1 * (1 + RATE * (OUTLIER - 1)))


def test_a_result_without_a_call_teaches_nothing() -> None:
    sequence_stats = SequenceDrafterStats(spent(DrafterStats(), TOKEN / 2))
    before = sequence_stats.stats.tokens
    sequence_stats.add_gain(0)
    assert sequence_stats.stats.tokens == before


class Slow:
    """A drafter that takes its time, by a clock that only it moves."""

    name: ClassVar[str] = "slow"

    def __init__(self, takes: float = TOKEN / 2, *, is_any_good: bool = False) -> None:
        self.now = 0.0
        self.takes = takes
        self.is_any_good = is_any_good
        self.calls = 0

    def start(self, request: DecodeRequest) -> str:
        """Remember nothing of note."""
        return ""

    def propose(self, requests: Sequence[DraftRequest[str]]) -> Sequence[Draft]:
        self.now += self.takes
        self.calls += 1
        return [Draft((1,), (0.9,)) for _ in requests]

    def observe(self, state: str, text: Sequence[int], result: VerificationResult) -> None:
        """Learn nothing."""

    def finish(self, state: str, text: Sequence[int]) -> None:
        """Hold nothing."""


def serving(
    monkeypatch: pytest.MonkeyPatch, drafter: Slow, costs: CostCurve, *, always: bool = False
) -> Iterator[int]:
    """Yield the rows that each step of one sequence drafts; those of even steps are right."""
    monkeypatch.setattr(Method, "make", lambda self, options, **context: drafter)
    choice = Choice(Method("drafter", "slow", "", "", ""), DraftOptions(max_draft=1, always=always))
    monkeypatch.setattr(speculator, "drafter_choices", lambda methods: (choice,))
    monkeypatch.setattr(time, "perf_counter", lambda: drafter.now)
    asking = Speculator(DrafterContext(9), costs)
    member = asking.start(DecodeRequest(Text([3]), SamplingParams(), 99, frozenset(), None))
    assert member is not None
    nothing: Any = None
    for step in count():
        tree = asking.propose([member], [8], DraftBudget(8, 1))[0]
        right = len(tree) > 0 and step % 2 == 0 and drafter.is_any_good
        accepted_rows, emitted = ([0, 1], [1, 2]) if right else ([0], [2])
        drawn = [emitted[0], 2]
        result = VerificationResult(
            tree.token_ids, tree.parents, accepted_rows, drawn, emitted, nothing, None
        )
        member.text.extend(result.emitted)
        asking.record(member, result)
        yield len(tree)


@pytest.mark.parametrize("always", [False, True])
def test_the_speculator_keeps_the_statistics(monkeypatch: pytest.MonkeyPatch, always: bool) -> None:
    drafter, steps = Slow(), 300
    costs = CostCurve({1: TOKEN, 2: TOKEN})
    sum(islice(serving(monkeypatch, drafter, costs, always=always), steps))
    want = steps if always else 2 * steps // PROBE_INTERVAL + 20
    assert drafter.calls == want if always else drafter.calls < want


@pytest.mark.parametrize(("takes", "is_worth_it"), [(0.35 * TOKEN, False), (0.1 * TOKEN, True)])
def test_what_rows_cost_is_taken_off_what_they_bring(
    monkeypatch: pytest.MonkeyPatch, takes: float, is_worth_it: bool
) -> None:
    """A token in two calls, each of whose rows costs a quarter: a quarter is left for a call."""
    drafter, steps = Slow(takes, is_any_good=True), 1000
    rows = sum(islice(serving(monkeypatch, drafter, CostCurve({1: TOKEN, 2: 1.25 * TOKEN})), steps))
    assert (rows > steps / 2) is is_worth_it


def test_a_curve_that_changes_its_shape_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said of steps in which no drafts can pay holds no longer than the shape does."""
    costs = CostCurve({1: TOKEN, 2: 3 * TOKEN})
    steps = serving(monkeypatch, Slow(takes=0.0), costs)
    assert sum(islice(steps, 100)) == 0
    for _ in range(50 * STALE):
        costs.observe(1, TOKEN)
        costs.observe(2, 1.1 * TOKEN)
    assert sum(islice(steps, 4)) > 0


def test_a_sequence_that_no_drafter_has_anything_to_go_by_has_none() -> None:
    methods = resolve_decoding({"drafter": ["forced", "prediction"]}).methods
    request = DecodeRequest(Text([1]), SamplingParams(), 4, frozenset(), None, methods)
    assert Speculator(DrafterContext(10), CostCurve()).start(request) is None


def test_clients_that_vary_options_fill_no_memory() -> None:
    speculator = Speculator(DrafterContext(10), CostCurve())
    for i in range(2 * MAX_CHOICES):
        named = {"drafter": {"name": "suffix", "factor": 1 + i / 1000}}
        methods = resolve_decoding(named).methods
        speculator.start(DecodeRequest(Text([1]), SamplingParams(), 4, frozenset(), None, methods))
    assert len(speculator._drafters) == MAX_CHOICES
