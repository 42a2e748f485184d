"""A drafter is asked while what it brings is worth its time, and now and then to see."""

from __future__ import annotations

import pytest

from plait.decoders.speculative.accounts import MARGIN, OUTLIER, PROBE, RATE, Account, Ledger

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


def test_a_drafter_that_never_brings_anything_is_probed_only() -> None:
    account = Account(spent(Ledger(), TOKEN / 2))
    asks(account, 100, accepted=0)
    assert asks(account, 10 * PROBE, accepted=0) == 10


def test_what_costs_next_to_nothing_is_always_asked() -> None:
    account = Account(spent(Ledger(), MARGIN * TOKEN))
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
