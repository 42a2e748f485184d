"""A drafter is asked while what it brings is worth its time, and now and then to see."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from plait.decoders.costs import CostCurve
from plait.decoders.protocol import Ask, DecodeRequest, Draft, Room, Verdict
from plait.decoders.registry import Choice, Method
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative import speculator
from plait.decoders.speculative.accounts import OUTLIER, PROBE, RATE, SHARE, Account, Ledger
from plait.decoders.speculative.config import DraftOptions
from plait.decoders.speculative.speculator import MAX_CHOICES, Speculator
from plait.decoders.speculative.workshop import Workshop

TOKEN = 0.01  # seconds that a token costs without drafts


def spent(ledger: Ledger, seconds: float, sequences: int = 1) -> Ledger:
    ledger.spend(seconds, sequences)
    ledger.close()
    return ledger


def asks(account: Account, steps: int, accepted: int) -> int:
    """Return how often an account is asked in so many steps, each ask bringing so much."""
    asked = 0
    for _ in range(steps):
        if account.pays(TOKEN):
            account.ask()
            account.settle(accepted)
            asked += 1
    return asked


def test_a_drafter_that_brings_more_than_it_costs_is_always_asked() -> None:
    assert asks(Account(spent(Ledger(), 1.5 * TOKEN)), 200, accepted=2) > 150


@pytest.mark.parametrize(("cost", "steps"), [(0.05, 5), (0.3, 30), (0.9, PROBE), (40, PROBE)])
def test_a_drafter_that_never_brings_anything_is_probed_only(cost: float, steps: int) -> None:
    """Asks take a share of the time, and an expensive drafter is asked once in PROBE steps."""
    account = Account(spent(Ledger(), cost * TOKEN))
    asks(account, 100, accepted=0)
    assert abs(asks(account, 10 * steps, accepted=0) - 10) <= 1


def test_what_costs_next_to_nothing_is_always_asked() -> None:
    account = Account(spent(Ledger(), SHARE * TOKEN))
    assert asks(account, 200, accepted=0) == 200


def test_a_probe_that_succeeds_brings_the_drafter_back() -> None:
    account = Account(spent(Ledger(), TOKEN / 2))
    asks(account, 100, accepted=0)
    assert asks(account, 4 * PROBE, accepted=4) > 2 * PROBE


def test_a_new_sequence_begins_with_what_was_learnt_elsewhere() -> None:
    ledger = spent(Ledger(), TOKEN / 2)
    asks(Account(ledger), 100, accepted=0)
    assert not Account(ledger).pays(TOKEN)


def test_seconds_are_those_of_one_sequence_over_all_calls_of_a_step() -> None:
    ledger = Ledger()
    ledger.spend(0.3, 4)
    ledger.spend(0.1, 2)
    ledger.close()
    assert ledger.seconds == pytest.approx(0.1)
    ledger.close()  # a step without asks changes nothing
    assert ledger.seconds == pytest.approx(0.1)


def test_one_slow_call_does_not_condemn_a_drafter() -> None:
    ledger = spent(spent(Ledger(), 0.1), 1000.0)
    assert ledger.seconds == pytest.approx(0.1 * (1 + RATE * (OUTLIER - 1)))


def test_a_verdict_on_what_nobody_asked_for_teaches_nothing() -> None:
    account = Account(spent(Ledger(), TOKEN / 2))
    before = account.ledger.tokens
    account.settle(0)
    assert account.ledger.tokens == before


class Slow:
    """A drafter that takes its time, by a clock that only it moves, and is never right."""

    name: ClassVar[str] = "slow"

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0

    def start(self, request: DecodeRequest) -> str:
        """Remember nothing of note."""
        return ""

    def propose(self, asks: Sequence[Ask[str]]) -> Sequence[Draft]:
        self.now += TOKEN / 2
        self.calls += 1
        return [Draft((1,), (0.9,)) for _ in asks]

    def commit(self, state: str, text: Sequence[int], verdict: Verdict) -> None:
        """Learn nothing."""

    def finish(self, state: str, text: Sequence[int]) -> None:
        """Hold nothing."""


@pytest.mark.parametrize("always", [False, True])
def test_the_speculator_keeps_the_account(monkeypatch: pytest.MonkeyPatch, always: bool) -> None:
    drafter, steps = Slow(), 300
    monkeypatch.setattr(Method, "make", lambda self, options, **context: drafter)
    choice = Choice(Method("drafter", "slow", "", "", ""), DraftOptions(max_draft=1, always=always))
    monkeypatch.setattr(speculator, "drafters", lambda options: (choice,))
    monkeypatch.setattr(time, "perf_counter", lambda: drafter.now)
    asking = Speculator(Workshop(9), CostCurve({1: TOKEN, 2: TOKEN}))
    member = asking.start(DecodeRequest([3], SamplingParams(), 99, frozenset(), None, 0, {}))
    assert member is not None
    for _ in range(steps):
        tree = asking.propose([member], [8], Room(8, 1))[0]
        nothing: Any = None
        verdict = Verdict(tree.token_ids, tree.parents, [0], [2, 2], [2], nothing, None)
        asking.settle(member, verdict)
    want = steps if always else 2 * steps // PROBE + 20
    assert drafter.calls == want if always else drafter.calls < want


def test_a_sequence_that_no_drafter_has_anything_to_go_by_has_none() -> None:
    options = {"drafter": ["forced", "prediction"]}
    request = DecodeRequest([1], SamplingParams(), 4, frozenset(), None, 0, options)
    assert Speculator(Workshop(10), CostCurve()).start(request) is None


def test_clients_that_vary_options_fill_no_memory() -> None:
    speculator = Speculator(Workshop(10), CostCurve())
    for i in range(2 * MAX_CHOICES):
        drafter = {"name": "suffix", "factor": 1 + i / 1000}
        speculator.start(
            DecodeRequest([1], SamplingParams(), 4, frozenset(), None, 0, {"drafter": drafter})
        )
    assert len(speculator._drafters) == MAX_CHOICES
