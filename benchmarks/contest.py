"""The servers that are compared, row by row, in turns within each repetition.

All run at once; while one is measured the others are stopped, for some that wait keep a core busy.
A repetition goes through all rows, so that the repetitions of a row lie far apart, and a machine
that is slow for a while slows none of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks import rows
from benchmarks.client import ServerFault
from benchmarks.machine import cpu_seconds as machine_cpu_seconds
from benchmarks.processes import cpu_seconds, paused
from benchmarks.report import OWN, Cell, Results
from benchmarks.rows import Bench, RedGate, Sample
from benchmarks.turns import turn_order

NO_DRAFTS = {"decoding": {"drafter": "off"}}
WARM_UP_SCALE = 0.1  # of a repetition that does not count


@dataclass(frozen=True, slots=True)
class Contender:
    """A column of the table; the servers are named as in `servers.SERVERS`."""

    title: str
    plain: str
    drafted: str = ""  # of the rows with drafts; "": it has none
    fields: Mapping[str, Any] = field(default_factory=dict)  # of requests without drafts


CONTENDERS: Mapping[str, Contender] = {
    "plait": Contender("plait", "plait", "plait", NO_DRAFTS),
    "vllm": Contender("vLLM", "vllm", "vllm-ngram"),
    "vllm-plain": Contender("vLLM without drafts", "vllm", "vllm"),  # in rows with drafts as well
    "llama-q4_1": Contender("llama-server Q4_1", "llama-q4_1", "llama-ngram"),
    "llama-q4_0": Contender("llama-server Q4_0", "llama-q4_0"),
    "plait-vllm": Contender("plait, vLLM worker", "plait-vllm", "plait-vllm", NO_DRAFTS),
}
USUAL = ("plait", "vllm", "llama-q4_1", "llama-q4_0")


@dataclass(frozen=True, slots=True)
class RowKind:
    """A line of the table, and how one repetition of it is measured."""

    title: str
    measure: Callable[[Bench], Awaitable[Sample]]
    is_drafted: bool = False


def _kinds() -> dict[str, RowKind]:
    plain = {
        "single": RowKind("1 stream", rows.single),
        "c8": RowKind("8 streams", rows.eight_streams),
        "c32": RowKind("32 streams", rows.many_streams),
        "ttft": RowKind(f"TTFT, {rows.PROMPT_TOKENS}-token prompt", rows.ttft),
        "json": RowKind("JSON schema, 1 stream", rows.json_single),
        "json8": RowKind("JSON schema, 8 streams", rows.json_streams),
        "copy": RowKind("copying a JSON text", rows.copy),
    }
    found: dict[str, RowKind] = {}
    for key, kind in plain.items():
        found[key] = kind
        if key != "ttft":  # there is nothing to draft before the first token
            found[f"{key}-drafts"] = RowKind(f"{kind.title}, drafts", kind.measure, True)
    return found


ROWS: Mapping[str, RowKind] = _kinds()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    contenders: Sequence[str]
    rows: Sequence[str]
    reps: int
    scale: float  # of the length of each row
    seconds: float  # a repetition that would end later is not begun; the first one always is


@dataclass(frozen=True, slots=True)
class Contest:
    """Servers that run beside each other, and what is known of them."""

    benches: Mapping[str, Bench]  # by the server
    pids: Mapping[str, int]
    results: Results
    say: Callable[[str], None]
    save: Callable[[Results], None]


def pairing(contenders: Sequence[str], row: str) -> dict[str, str]:
    """Return by contender the server that a row is measured on; those without one are left out."""
    chosen = {label: CONTENDERS[label] for label in contenders}
    is_drafted = ROWS[row].is_drafted
    found = {label: one.drafted if is_drafted else one.plain for label, one in chosen.items()}
    return {label: server for label, server in found.items() if server}


def fields_of(contender: str, row: str, rep: int) -> Mapping[str, Any]:
    """Return the fields of every request of a repetition.

    With drafts, each repetition has a namespace of plait's draft store to itself: what is learned
    from the answers of earlier ones would make it faster by and by.
    """
    if not ROWS[row].is_drafted:
        return CONTENDERS[contender].fields
    return {"cache_salt": f"{row} {rep}"} if contender in OWN else {}


async def run(contest: Contest, plan: Plan, begun: float) -> None:
    """Warm up, then measure all rows in each repetition, and save after each row.

    begun: time.monotonic() of the beginning that the plan's seconds count from.
    """
    last = 0.0
    for rep in range(-1, plan.reps):
        started = time.monotonic()
        if rep > 0 and started - begun + last > plan.seconds:
            contest.say(f"{rep} of {plan.reps} repetitions: the time is up")
            break
        for row in plan.rows:
            await _row(contest, plan, row, rep)
        last = time.monotonic() - started
        contest.results.reps = max(rep + 1, contest.results.reps)
        contest.save(contest.results)


async def _row(contest: Contest, plan: Plan, row: str, rep: int) -> None:
    """Measure a row once on each server, who begins changing from repetition to repetition."""
    servers = pairing(plan.contenders, row)
    labels = [label for label, server in servers.items() if server in contest.benches]
    cells = contest.results.rows.setdefault(row, {})
    said = []
    for i in turn_order(len(labels), rep):
        label = labels[i]
        cell = cells.setdefault(label, Cell())
        if cell.fault:
            continue
        fields = fields_of(label, row, rep)
        bench = contest.benches[servers[label]].at(row, rep, fields, plan.scale)
        if rep < 0:
            bench = bench.at(row, rep, fields, WARM_UP_SCALE)
        try:
            sample = await _metered(contest, servers[label], ROWS[row].measure(bench), rep)
        except (RedGate, ServerFault, httpx.TransportError) as error:
            cell.fault = f"{type(error).__name__}: {error}"
            said.append(f"{label} {cell.fault}")
            continue
        if rep >= 0:
            cell.add(sample)
        said.append(f"{label} {sample.value:.4g}")
    contest.say(f"{_name(rep, plan)}, {ROWS[row].title}: {', '.join(said)}")
    contest.save(contest.results)


def _name(rep: int, plan: Plan) -> str:
    return "warm-up" if rep < 0 else f"{rep + 1} of {plan.reps}"


async def _metered(contest: Contest, server: str, measuring: Awaitable[Sample], rep: int) -> Sample:
    """Measure, and note what the servers that wait, and other programs, used meanwhile."""
    before = {name: cpu_seconds(pid) for name, pid in contest.pids.items()}
    own, (busy, total) = time.process_time(), machine_cpu_seconds()
    began = asyncio.get_running_loop().time()
    with paused(pid for name, pid in contest.pids.items() if name != server):
        sample = await measuring
    seconds = asyncio.get_running_loop().time() - began
    now_busy, now_total = machine_cpu_seconds()
    used = {name: cpu_seconds(pid) - before[name] for name, pid in contest.pids.items()}
    if rep >= 0:
        for name, taken in used.items():
            if name != server:
                contest.results.servers[name].idle.add(taken, seconds)
        others = now_busy - busy - sum(used.values()) - (time.process_time() - own)
        contest.results.others.add(max(others, 0.0), now_total - total)
    return sample
