"""The comparison with peers: who is measured when, what is saved, which way its ratios point."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks import contest
from benchmarks.contest import (
    CONTENDERS,
    ROWS,
    USUAL,
    Contest,
    Plan,
    RowKind,
    fields_of,
    pairing,
    run,
)
from benchmarks.machine import Machine
from benchmarks.processes import paused
from benchmarks.report import Cell, Facts, Results, Usage, load, save, table
from benchmarks.roofline import Bandwidth, share
from benchmarks.rows import Bench, RedGate, Sample
from benchmarks.servers import SERVERS
from tests.fixtures.pools import until

MACHINE = Machine("A CPU", 2, 8.0, "avx2", 0.0, "3.11", "2.13", "abc1234")


def _results(**fields: Any) -> Results:
    usual = {label: CONTENDERS[label] for label in USUAL}
    contenders = {label: {"title": one.title, "server": one.plain} for label, one in usual.items()}
    titles = {key: kind.title for key, kind in ROWS.items()}
    return Results("2026-01-02T03:04:05", "bench", MACHINE, contenders, titles, **fields)


def test_each_row_has_a_server_that_exists_and_drafts_where_it_says_so() -> None:
    for row, kind in ROWS.items():
        servers = pairing([*CONTENDERS], row)
        assert {*servers.values()} <= {*SERVERS}
        fields = fields_of("plait", row, 0)
        assert (fields.get("decoding") == {"drafter": "off"}) is not kind.is_drafted
    chosen = ["vllm", "vllm-plain", "llama-q4_0"]
    assert pairing(chosen, "single-drafts") == {"vllm": "vllm-ngram", "vllm-plain": "vllm"}
    assert fields_of("vllm", "single", 0) == fields_of("vllm", "single-drafts", 0) == {}


def test_what_was_learned_in_a_repetition_is_of_no_use_in_the_next() -> None:
    salts = [fields_of("plait", "json-drafts", rep)["cache_salt"] for rep in range(3)]
    assert len({*salts}) == 3


@contextmanager
def _process() -> Iterator[psutil.Popen]:
    """Run a process that waits."""
    with psutil.Popen(["sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_paused_process_stands_still_and_goes_on_whatever_happens_meanwhile() -> None:
    with _process() as one, _process() as other:
        with pytest.raises(RedGate), paused([one.pid]):
            await until(lambda: one.status() == psutil.STATUS_STOPPED)
            assert other.status() != psutil.STATUS_STOPPED
            raise RedGate
        await until(lambda: one.status() == psutil.STATUS_SLEEPING)


Measure = Callable[[Bench], Awaitable[Sample]]


async def _contest(
    measure: Measure, plan: Plan, monkeypatch: pytest.MonkeyPatch, begun: float = float("inf")
) -> tuple[Results, list[str]]:
    """Run a contest of one row between two servers that answer nothing."""
    monkeypatch.setattr(contest, "ROWS", {"row": RowKind("a row", measure)})
    results, said = _results(), list[str]()
    async with httpx.AsyncClient(base_url="http://peer") as client, AsyncExitStack() as stack:
        benches = {name: Bench(client, name) for name in ("plait", "vllm")}
        results.servers = {name: Facts() for name in benches}
        waiting = [stack.enter_context(_process()) for _ in benches]
        pids = {name: process.pid for name, process in zip(benches, waiting, strict=True)}
        saved: list[int] = []
        it = Contest(benches, pids, results, said.append, lambda found: saved.append(found.reps))
        await run(it, plan, begun)
    assert saved[-1] == results.reps
    return results, said


async def test_servers_take_turns_with_the_same_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, float]] = []

    async def measure(bench: Bench) -> Sample:
        seen.append((bench.model, bench.rng.random(), bench.scale))
        return Sample("tok/s", len(seen))

    plan = Plan(["plait", "vllm"], ["row"], 2, 0.5, 1.0)
    results, _ = await _contest(measure, plan, monkeypatch)
    assert [name for name, _, _ in seen] == ["vllm", "plait", "plait", "vllm", "vllm", "plait"]
    assert [scale for _, _, scale in seen] == [contest.WARM_UP_SCALE] * 2 + [0.5] * 4
    prompts = [number for _, number, _ in seen]
    assert prompts[::2] == prompts[1::2], "the same for both servers"
    assert len({*prompts}) == 3, "others in each repetition"
    cells = results.rows["row"]
    assert (cells["plait"].values, cells["vllm"].values) == ([3, 6], [4, 5])
    assert results.servers["vllm"].idle.seconds > 0


async def test_a_server_that_fails_in_a_row_is_measured_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def measure(bench: Bench) -> Sample:
        if bench.model == "vllm" and bench.scale == 1:
            raise RedGate("7 tokens")
        return Sample("tok/s", 1)

    plan = Plan(["plait", "vllm"], ["row"], 3, 1.0, 1.0)
    results, said = await _contest(measure, plan, monkeypatch)
    cells = results.rows["row"]
    assert len(cells["plait"].values) == 3
    assert (cells["vllm"].values, cells["vllm"].fault) == ([], "RedGate: 7 tokens")
    assert sum("7 tokens" in line for line in said) == 1


async def test_no_repetition_is_begun_that_would_end_late(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(bench: Bench) -> Sample:
        return Sample("tok/s", 1)

    plan = Plan(["plait"], ["row"], 5, 1.0, 10.0)
    results, said = await _contest(measure, plan, monkeypatch, begun=float("-inf"))
    assert results.reps == 1
    assert said[-1] == "1 of 5 repetitions: the time is up"


def _facts(**fields: Any) -> Facts:
    return Facts(starts=[9.0, 2.0], right="3 of 3", **fields)


def _cells(unit: str, **values: list[float]) -> dict[str, Cell]:
    return {
        label.replace("_", "-"): Cell(unit, found, [{} for _ in found])
        for label, found in values.items()
    }


def test_a_ratio_is_the_median_of_those_of_the_repetitions() -> None:
    servers = {
        "plait": _facts(memory_mib=100.0, weights_bytes=100 * 10**6, version="1"),
        "vllm": Facts(starts=[8.0], right="2 of 3", memory_mib=250.0, weights_bytes=200 * 10**6),
        "llama-q4_1": Facts(fault="not installed"),
    }
    servers["vllm"].idle.add(0.1, 10.0)
    cells = _cells("tok/s", plait=[10.0, 100.0, 50.0], vllm=[5.0, 25.0, 50.0])
    waits = _cells("ms", plait=[10.0], vllm=[30.0])
    results = _results(servers=servers, rows={"single": cells, "ttft": waits}, reps=3)
    results.bandwidth = Bandwidth(20e9, 40e9, 2**30, 100 * 10**6, 2**28)
    text, *notes = table(results).split("\n\n")
    assert text.splitlines() == [
        "|  | plait 1 | vLLM |",
        "| --- | ---: | ---: |",
        "| 1 stream, tok/s | 50 (10-100) | 25, 2.00x (1-4) |",
        "| TTFT, 511-token prompt, ms | 10 | 30, 3.00x |",
        "| memory, MiB | 100 | 250, 2.50x |",
        "| start to ready, s | 2 | 8, 4.00x |",
        "| right answers of the gate | 3 of 3 | 2 of 3 |",
        "| 1 stream, share of the memory's bandwidth | 25% | 25% |",
    ]
    assert "which fit the last cache (256 MiB)" in notes[1]
    assert "vllm 1.0%" in notes[2]
    assert notes[-1] == "llama-q4_1: not installed"


def test_validity_and_likeness_stand_beside_a_speed_and_a_fault_in_place_of_it() -> None:
    valid = Cell("tok/s", [2.0, 2.0], [{"valid": 3, "of": 4}, {"valid": 4, "of": 4}])
    alike = Cell("tok/s", [2.0], [{"similarity": 0.955}])
    rows: Mapping[str, dict[str, Cell]] = {
        "json": {"plait": valid, "vllm": Cell("", [], [], "ServerFault: 500")},
        "copy": {"plait": alike},
    }
    results = _results(servers={"plait": _facts(), "vllm": _facts()}, rows=dict(rows))
    lines = table(results).splitlines()
    assert lines[2] == "| JSON schema, 1 stream, tok/s | 2 (2-2), 7 of 8 valid | failed |"
    assert lines[3] == "| copying a JSON text, tok/s | 2, 96% like it | - |"
    assert lines[-1] == "vllm, json: ServerFault: 500"


def test_results_are_read_as_they_were_saved(tmp_path: Path) -> None:
    results = _results(servers={"plait": _facts()}, rows={"c8": _cells("tok/s", plait=[1.0, 2.0])})
    results.bandwidth = Bandwidth(20e9, 40e9, 2**30, 2**20, 2**19)
    save(results, tmp_path / "new" / "some.json")
    assert load(tmp_path / "new" / "some.json") == results
    assert (tmp_path / "new" / "some.md").read_text() == table(results) + "\n"
    assert "do not fit" in table(results)


def test_a_share_of_the_bandwidth_counts_all_weights_for_each_token() -> None:
    assert share(100 * 10**6, 100.0, 20e9) == 0.5
    assert Usage().share == 0
