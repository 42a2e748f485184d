"""Walks valid instances through masks, token by token, and takes the times (as MaskBench does).

Source: MaskBench of guidance-ai/jsonschemabench. Differs: compiling is measured in CPU time, and a
token that an engine does not allow ends that instance, not the schema.
"""

from __future__ import annotations

import gc
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.maskbench import Case, Deadline, instance_text, key_order, reordered
from benchmarks.structured.engines import Refused
from benchmarks.structured.walking.walkers import Walk, Walker

Encode = Callable[[str], list[int]]


@dataclass(slots=True)
class WalkTimes:
    """What one engine took, in seconds, and how far it came."""

    version: str = ""
    accepted: int = 0
    refused: int = 0
    failed: int = 0  # schemas that took longer than the deadline
    ended: int = 0  # instances that were walked to their end
    broken: int = 0  # instances with a token that was not allowed
    compile: list[float] = field(default_factory=list)  # CPU time of each schema, refused ones too
    serves: list[bool] = field(default_factory=list)  # whether each schema is accepted
    mask: list[float] = field(default_factory=list)  # of each token
    accept: list[float] = field(default_factory=list)  # of each token that was allowed


def walk_cases(cases: Iterable[Case], walker: Walker, encode: Encode, deadline_s: int) -> WalkTimes:
    """Return the times of one engine; its process must be its own, since it uses its alarm.

    Garbage is collected between cases only: the compile service's processes, too, end without.
    """
    signal.signal(signal.SIGALRM, _interrupt)
    times = WalkTimes()
    with _collecting_by_hand():
        for case in cases:
            gc.collect()
            signal.alarm(deadline_s)
            try:
                _walk_case(case, walker, encode, times)
            except Deadline:
                times.failed += 1
            finally:
                signal.alarm(0)
    return times


@contextmanager
def _collecting_by_hand() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what is there already is not looked at again
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _interrupt(*_: object) -> None:
    raise Deadline


def _walk_case(case: Case, walker: Walker, encode: Encode, times: WalkTimes) -> None:
    schema, ranks = json.dumps(case.schema), key_order(case.schema)
    began = time.process_time()
    try:
        walk = walker(schema)
    except Refused:
        times.refused += 1
        return
    finally:
        times.compile.append(time.process_time() - began)
        times.serves.append(False)
    times.serves[-1] = True
    times.accepted += 1
    for test in case.tests:
        text = instance_text(reordered(test["data"], ranks)) if test["valid"] else None
        if text is not None:
            _walk_text(walk, encode(text.decode()), times)


def _walk_text(walk: Walk, token_ids: list[int], times: WalkTimes) -> None:
    num_accepted = 0
    for token_id in token_ids:
        began = time.perf_counter()
        walk.write_mask()
        times.mask.append(time.perf_counter() - began)
        if not walk.allows(token_id):
            break
        began = time.perf_counter()
        walk.accept(token_id)
        times.accept.append(time.perf_counter() - began)
        num_accepted += 1
    if num_accepted == len(token_ids):
        times.ended += 1
    else:
        times.broken += 1
    walk.rewind(num_accepted)
