"""Both builds answer the same random requests; what a client sees has to be the same."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from benchmarks.client import connect
from benchmarks.compare_builds.answers import Answer, differences, is_reworded, read
from benchmarks.compare_builds.builds import Build
from benchmarks.compare_builds.requests import CAUSAL, DIFFUSION, Request, random_requests
from benchmarks.servers import NotReady, running

AT_ONCE = 6
ALL_SHOWN = 20  # differences of one kind


@dataclass(frozen=True, slots=True)
class Setting:
    """A server that both builds start, and the model that is asked."""

    arguments: Sequence[str]
    model: str


SETTINGS: Mapping[str, Setting] = {
    "fp32": Setting([CAUSAL, "--weights", "fp32", "--draft-model", "self:8"], CAUSAL),
    "default": Setting([CAUSAL, "--draft-model", "self:8"], CAUSAL),
    "diffusion": Setting([DIFFUSION], DIFFUSION),
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """All that one build said; `surface`: names that users write down."""

    answers: Sequence[Answer]
    surface: Mapping[str, Sequence[str]] = field(default_factory=dict)
    fault: str = ""  # it did not start, or did not stay


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of one setting."""

    lines: Sequence[str]
    reworded: Sequence[str]
    statuses: Mapping[int, int]


def compare(recorded: tuple[Recorded, Recorded], requests: Sequence[Request]) -> Comparison:
    """Return every difference between two builds; errors that are only reworded by themselves."""
    before, after = recorded
    lines = [f"{side.fault}" for side in recorded if side.fault]
    lines += _missing_names(before.surface, after.surface)
    reworded: list[str] = []
    statuses: dict[int, int] = {}
    for request, want, have in zip(requests, before.answers, after.answers, strict=False):
        statuses[want.status] = statuses.get(want.status, 0) + 1
        found = differences(want, have, is_exact=request.is_exact)
        if not found:
            continue
        shown = "\n    ".join(line[:400] for line in found[:4])
        text = f"request {request.name} {json.dumps(request.body)}:\n    {shown}"
        (reworded if is_reworded(want, have) else lines).append(text)
    if not before.fault and not after.fault and len(after.answers) != len(requests):
        lines.append(f"{len(after.answers)} of {len(requests)} requests were answered")
    return Comparison(lines, reworded, statuses)


def _missing_names(
    before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    for kind, names in before.items():
        if after and (missing := sorted({*names} - {*after.get(kind, ())})):
            yield f"{kind} that are no more: {', '.join(missing)}"


def record(build: Build, setting: Setting, requests: Sequence[Request], keep: Path) -> Recorded:
    """Return what a build answers; of the one before, what a clean commit has said is kept."""
    path = keep / f"{_key(build, setting, requests)}.json"
    is_kept = bool(build.commit) and build.name == "before"
    if is_kept and path.exists():
        raw = json.loads(path.read_text())
        return Recorded([Answer(**answer) for answer in raw["answers"]], raw["surface"])
    log = keep / f"{build.name}.log"
    try:
        with running(build.command(setting.arguments), log) as server:
            made = asyncio.run(_ask_all(server.base_url, requests))
            names = asyncio.run(_server_names(server.base_url))
    except NotReady as error:
        return Recorded([], {}, f"{build.name} does not serve: {error}; its log: {log}")
    made = Recorded(made.answers, {**names, "options": _options(build)}, made.fault)
    if is_kept:
        path.write_text(json.dumps(asdict(made)))
    return made


def _key(build: Build, setting: Setting, requests: Sequence[Request]) -> str:
    asked = json.dumps([[*setting.arguments], [asdict(request) for request in requests]])
    digest = hashlib.blake2b(asked.encode(), digest_size=6).hexdigest()
    return f"{build.commit}-{digest}"


async def _ask_all(url: str, requests: Sequence[Request]) -> Recorded:
    """Ask what is to run alone in turn, then the rest, some at once."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with connect(url) as client:

        async def ask(request: Request) -> Answer:
            async with gate:
                return await _ask(client, request)

        alone = [await _ask(client, request) for request in requests if request.is_alone]
        rest = [ask(request) for request in requests if not request.is_alone]
        return Recorded([*alone, *await asyncio.gather(*rest)])


async def _ask(client: httpx.AsyncClient, request: Request) -> Answer:
    try:
        return read(await client.post(request.endpoint, json=request.body))
    except httpx.HTTPError as error:
        return Answer(0, {}, type(error).__name__)


async def _server_names(url: str) -> dict[str, list[str]]:
    async with connect(url) as client:
        metrics = (await client.get("/metrics")).text
        openapi = (await client.get("/openapi.json")).json()
    schemas = openapi["components"]["schemas"].values()
    return {
        "metrics": re.findall(r"^# TYPE (\S+)", metrics, re.M),
        "routes": [*openapi["paths"]],
        "fields": sorted({name for schema in schemas for name in schema.get("properties", ())}),
    }


def _options(build: Build) -> list[str]:
    done = subprocess.run(
        [build.executable, "serve", "--help"], capture_output=True, text=True, check=False
    )
    return sorted(set(re.findall(r"^  (--[\w-]+)", done.stdout, re.M)))


def compare_texts(
    builds: tuple[Build, Build], names: Sequence[str], count: int, seed: int, keep: Path
) -> int:
    """Compare under each setting, print what differs; return how many differences there are."""
    total = 0
    for name in names:
        setting = SETTINGS[name]
        requests = random_requests(setting.model, count, seed=seed)
        before, after = (record(build, setting, requests, keep) for build in builds)
        found = compare((before, after), requests)
        total += len(found.lines)
        print(
            f"{name}: {len(found.lines)} differences in {len(requests)} requests, "
            f"{len(found.reworded)} errors reworded; statuses before: {found.statuses}",
            flush=True,
        )
        for title, lines in (("differs", found.lines), ("reworded", found.reworded)):
            for line in lines[:ALL_SHOWN]:
                print(f"  {title}: {line}", file=sys.stdout, flush=True)
    return total
