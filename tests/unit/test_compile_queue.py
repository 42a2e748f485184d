"""Fairness of the compile queue, and its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plait.server.pool.compile_service.fair_queue import OFFENCE_S, FairQueue

SLOTS = 2


class Clock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _filled(limit: int = 100, **lines: int) -> tuple[FairQueue[str], Clock]:
    """Return a queue in which each tenant waits with so many first tries, and its clock."""
    clock = Clock()
    queue: FairQueue[str] = FairQueue(limit, clock)
    for tenant, count in lines.items():
        for number in range(count):
            assert queue.add(tenant, f"{tenant}{number}") is None
    return queue, clock


def _drain(queue: FairQueue[str], num_long: int = 0) -> list[str]:
    taken: list[str] = []
    while (turn := queue.take(SLOTS, num_long)) is not None:
        taken.append(turn[0])
    return taken


def test_tenants_take_turns_however_much_each_has_in_line() -> None:
    queue, _ = _filled(a=4, b=1, c=2)
    assert _drain(queue) == ["a0", "b0", "c0", "a1", "c1", "a2", "a3"]


def test_who_asks_one_thing_at_a_time_does_not_overtake_who_asks_many() -> None:
    queue, _ = _filled(many=3, single=1)
    taken = []
    for number in range(1, 4):
        taken += [queue.take(SLOTS, 0), queue.take(SLOTS, 0)]
        queue.add("single", f"single{number}")
    names = [turn[0] for turn in taken if turn is not None]
    assert names == ["many0", "single0", "many1", "single1", "many2", "single2"]


def test_who_went_over_limits_waits_behind_others_until_it_is_forgotten() -> None:
    queue, clock = _filled(bad=2, worse=2, good=2)
    for tenant in ("worse", "bad", "worse"):
        queue.note_offence(tenant)
    assert [queue.take(SLOTS, 0) for _ in range(3)] == [
        ("good0", False),
        ("good1", False),
        ("bad0", False),
    ]
    clock.now = OFFENCE_S
    assert _drain(queue) == ["worse0", "bad1", "worse1"]


def test_long_compiles_leave_a_slot_to_first_tries_and_have_one_themselves() -> None:
    queue, _ = _filled(a=1)
    for name in ("long0", "long1", "long2"):
        queue.put_back("b", name, is_long=True)
    assert queue.take(SLOTS, num_long=0) == ("long0", True)
    assert queue.take(SLOTS, num_long=1) == ("a0", False)
    assert queue.take(SLOTS, num_long=1) is None, "the last slot waits for a first try"
    assert queue.take(SLOTS + 1, num_long=1) == ("long1", True)


def test_an_interrupted_first_try_comes_before_the_others_of_its_tenant() -> None:
    queue, _ = _filled(limit=2, a=2)
    queue.put_back("a", "again", is_long=False)
    assert _drain(queue) == ["again", "a0", "a1"]


def test_what_several_tenants_wait_for_is_served_in_the_first_ones_turn_and_once() -> None:
    queue, _ = _filled(bad=3, good=1)
    queue.note_offence("bad")
    queue.add("good", "bad2")
    assert _drain(queue) == ["good0", "bad2", "bad0", "bad1"]
    assert len(queue) == 0


def test_what_is_discarded_is_in_no_line() -> None:
    queue, _ = _filled(a=2, b=1)
    queue.add("b", "a0")
    queue.discard("a0")
    assert "a0" not in queue
    assert _drain(queue) == ["a1", "b0"]


def test_a_full_queue_takes_from_the_longest_line() -> None:
    queue, _ = _filled(limit=4, greedy=3, modest=1)
    assert queue.add("greedy", "more") == "more"
    assert queue.add("new", "new0") == "greedy2"
    assert queue.add("modest", "modest1") is not None, "nobody has more than one above it"
    assert _drain(queue) == ["greedy0", "modest0", "new0", "greedy1"]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()), max_size=40),
    st.integers(1, 5),
)
def test_nothing_is_lost_doubled_or_without_bound(
    asked: list[tuple[str, int, bool]], limit: int
) -> None:
    queue: FairQueue[int] = FairQueue(limit)
    waiting: set[int] = set()
    for tenant, item, is_take in asked:
        if is_take:
            turn = queue.take(SLOTS, 0)
            assert (turn is None) == (not waiting)
            if turn is not None:
                waiting.remove(turn[0])
            continue
        waiting.add(item)
        if (left := queue.add(tenant, item)) is not None:
            waiting.remove(left)
        assert len(queue) <= limit
        assert all(each in queue for each in waiting)
    while (turn := queue.take(SLOTS, 0)) is not None:
        waiting.remove(turn[0])
    assert not waiting
