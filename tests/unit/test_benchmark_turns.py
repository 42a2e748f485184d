"""What makes a comparison of servers fair: order, pairs, prompts, what they hold in memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from subprocess import PIPE
from typing import Any

import httpx
import psutil
import pytest

from benchmarks import prompts, rows
from benchmarks.processes import cpu_seconds, resident_mib
from benchmarks.rows import Bench, RedGate, Sample
from benchmarks.turns import Spread, in_turns, paired_ratios, spread, turn_order


def test_each_server_begins_equally_often_and_none_is_left_out() -> None:
    orders = [turn_order(3, rep) for rep in range(-3, 6)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert Counter(order[0] for order in orders) == {0: 3, 1: 3, 2: 3}


async def test_repetitions_are_interleaved_and_warm_ups_do_not_count() -> None:
    seen: list[tuple[int, int]] = []

    async def measure(server: int, rep: int) -> Sample:
        seen.append((rep, server))
        return Sample("tok/s", 10 * rep + server)

    found = await in_turns(2, 2, measure)
    assert seen == [(-1, 1), (-1, 0), (0, 0), (0, 1), (1, 1), (1, 0)]
    assert [[sample.value for sample in side] for side in found] == [[0, 10], [1, 11]]


@pytest.mark.parametrize(
    ("unit", "want"), [("tok/s", [0.5, 2.0]), ("ms", [2.0, 0.5]), ("MiB", [2.0, 0.5])]
)
def test_a_ratio_above_one_is_better(unit: str, want: list[float]) -> None:
    assert paired_ratios([10, 40], [20, 20], unit) == want


def test_ratios_need_as_many_repetitions_of_both() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_ratios([1, 2], [1], "ms")


def test_a_spread_is_a_median_and_its_range() -> None:
    assert spread([3, 1, 2, 10]) == Spread(2.5, 1, 10)
    assert str(spread([3, 1, 2])) == "2 (1-3)"


MEASURES: list[Callable[[Bench], Awaitable[Sample]]] = [
    *(rows.single, rows.eight_streams, rows.ttft, rows.json_single, rows.json_streams, rows.copy)
]


async def _bodies(
    measure: Callable[[Bench], Awaitable[Sample]], row: str, rep: int
) -> list[dict[str, Any]]:
    """Return what one repetition sends to a server that answers as long as it is asked to."""
    seen: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(body := json.loads(request.content))
        usage = {"prompt_tokens": 511, "completion_tokens": body["max_tokens"]}
        chunks = [{"choices": [{"delta": {"content": text}}]} for text in "ab"]
        lines = [json.dumps(chunk) for chunk in [*chunks, {"choices": [], "usage": usage}]]
        content = "".join(f"data: {line}\n\n" for line in lines).encode()
        return httpx.Response(200, stream=httpx.ByteStream(content))

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(base_url="http://peer", transport=transport) as client:
        bench = Bench(client, "m")
        bench.rng.random()  # what was drawn before changes nothing
        await measure(bench.at(row, rep, {"decoding": {"drafter": "off"}}))
    return seen


@pytest.mark.parametrize("measure", MEASURES)
async def test_prompts_are_new_in_each_repetition_and_the_same_for_all_servers(
    measure: Callable[[Bench], Awaitable[Sample]],
) -> None:
    first, again = await _bodies(measure, "row", 0), await _bodies(measure, "row", 0)
    assert first == again
    others = await _bodies(measure, "row", 1) + await _bodies(measure, "other row", 0)
    texts = [body["messages"][0]["content"].split("]")[0] for body in first + others]
    assert len({*texts}) == len(texts), "each begins with a number of its own"
    assert all(body["decoding"] == {"drafter": "off"} for body in first)


@pytest.mark.parametrize("measure", MEASURES[:3])
async def test_texts_are_drawn_with_a_seed_and_of_a_forced_length(
    measure: Callable[[Bench], Awaitable[Sample]],
) -> None:
    bodies = await _bodies(measure, "row", 0)
    assert all(body["ignore_eos"] and body["temperature"] > 0 for body in bodies)
    assert len({body["seed"] for body in bodies}) == len(bodies)


@pytest.mark.parametrize("measure", [rows.single, rows.eight_streams, rows.copy])
async def test_answers_of_another_length_are_not_compared(
    measure: Callable[[Bench], Awaitable[Sample]],
) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 7}
    content = f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=httpx.ByteStream(content)))
    async with httpx.AsyncClient(base_url="http://peer", transport=transport) as client:
        with pytest.raises(RedGate, match="7"):
            await measure(Bench(client, "m"))


def test_what_is_copied_is_new_each_time_and_long_enough() -> None:
    rng = random.Random(1)
    sources = [prompts.copying(rng)[1] for _ in range(50)]
    assert len({*sources}) == 50
    assert min(map(len, sources)) > 2 * rows.COPIED_TOKENS


def test_memory_counts_pages_of_files_whoever_else_has_them() -> None:
    code = "import numpy, sys; print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE)
    assert child.stdin is not None and child.stdout is not None
    with child:
        child.stdout.readline()
        memory = psutil.Process(child.pid).memory_full_info()
        have = sum(resident_mib(child.pid)) * 2**20
        used = cpu_seconds(child.pid)
        child.stdin.close()
    assert memory.pss * 0.9 < have < memory.rss * 1.1
    assert used > 0
