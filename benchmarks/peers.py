"""Measures plait and its peers in turns on this machine, and prints the ratios.

    python -m benchmarks.peers [--quick] [--only plait,vllm] [--rows single,c8] [--peers FOLDER]

`sh benchmarks/install_peers.sh FOLDER` installs them. A server is measured only after its answers
have passed a gate. Numbers of one run may be compared with each other; the machine is seldom the
same twice. What is known is saved under results/ after each row.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import uvloop

from benchmarks.client import ServerFault, connect
from benchmarks.contest import CONTENDERS, ROWS, USUAL, Contest, Plan, pairing, run
from benchmarks.machine import ROOT, this_machine
from benchmarks.processes import resident_mib
from benchmarks.report import RESULTS, Facts, Results, own_label, save, table
from benchmarks.roofline import measure as measure_bandwidth
from benchmarks.rows import Bench, RedGate, check
from benchmarks.servers import SERVERS, NotInstalled, NotReady, Running, Venvs, running

QUICK_REPS, QUICK_SCALE = 2, 0.4
QUICK_ROWS = (
    *("single", "single-drafts", "c8", "c32", "ttft"),
    *("json", "json-drafts", "json8", "copy-drafts"),
)
LONG_START_S = 20.0  # a server that takes longer is started once


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def names_among(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a reader of comma-separated names."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return names

    return parse


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    known = names_among([*CONTENDERS])
    parser.add_argument("--quick", action="store_true", help="some rows, shorter, two repetitions")
    parser.add_argument("--only", type=known, default=[*USUAL], metavar="A,B")
    parser.add_argument("--rows", type=names_among([*ROWS]), metavar="A,B")
    parser.add_argument("--reps", type=int, help="repetitions of each row (5, quick: 2)")
    parser.add_argument("--minutes", type=float, default=30.0, help="no repetition is begun later")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--peers", type=Path, default=ROOT, help="where they were installed")
    parser.add_argument("--files", type=Path, help="where peers' model files and logs are kept")
    args = parser.parse_args()
    args.rows = args.rows or [*(QUICK_ROWS if args.quick else ROWS)]
    return args


def _command(args: argparse.Namespace) -> str:
    """Return the command that measures the same; where the peers lie is this machine's affair."""
    words = ["--quick"] if args.quick else []
    words += ["--only", ",".join(args.only)] if args.only != [*USUAL] else []
    usual = [*(QUICK_ROWS if args.quick else ROWS)]
    words += ["--rows", ",".join(args.rows)] if args.rows != usual else []
    words += ["--reps", str(args.reps)] if args.reps else []
    return f"python -m benchmarks.peers {shlex.join(words)}".rstrip()


def _path(args: argparse.Namespace) -> Path:
    """Return where results are saved: only whole ones are those that the documents show."""
    is_whole = not args.quick and args.only == [*USUAL] and args.rows == [*ROWS]
    return RESULTS / ("peers.json" if is_whole else "peers-part.json")


def _needed(contenders: Sequence[str], rows: Sequence[str]) -> list[str]:
    """Return the servers that rows are measured on, each once, those of plain rows first."""
    plain = [CONTENDERS[label].plain for label in contenders]
    return [*dict.fromkeys([*plain, *(s for r in rows for s in pairing(contenders, r).values())])]


def _start(
    server: str, places: Venvs, facts: Facts, starts: int, stack: ExitStack
) -> Running | None:
    """Start a server, more than once if it is quick, and keep the last; None if that failed."""
    log = places.files / f"{server}.log"
    try:
        command = SERVERS[server](places)
        facts.version = command.version
        facts.weights_bytes = command.weights.stat().st_size if command.weights else 0
        for _ in range(starts - 1):
            with running(command, log) as first:
                facts.starts.append(first.seconds_to_ready)
            if first.seconds_to_ready > LONG_START_S:
                break
        found = stack.enter_context(running(command, log))
    except NotInstalled as absent:
        facts.fault = str(absent)
        return None
    except NotReady as error:
        facts.fault = f"{error}; its log: {log}"
        return None
    facts.starts.append(found.seconds_to_ready)
    _say(f"{server}: ready after {', '.join(f'{seconds:.1f}' for seconds in facts.starts)} s")
    return found


async def _measure(
    servers: Mapping[str, Running], plan: Plan, results: Results, path: Path, begun: float
) -> None:
    """Let each server pass the gate, then measure those that have."""
    benches: dict[str, Bench] = {}
    async with AsyncExitStack() as stack:
        for name, server in servers.items():
            client = await stack.enter_async_context(connect(server.base_url))
            bench = Bench(client, server.model)
            try:
                right = await check(bench)
            except (RedGate, ServerFault) as error:
                results.servers[name].fault = str(error)
                _say(f"{name}: {error}")
                continue
            results.servers[name].right = f"{right.value:.0f} of {right.notes['of']}"
            benches[name] = bench
        pids = {name: server.pid for name, server in servers.items()}
        contest = Contest(benches, pids, results, _say, lambda found: save(found, path))
        await run(contest, plan, begun)
    for name, server in servers.items():
        results.servers[name].memory_mib = sum(resident_mib(server.pid))


def _new_results(args: argparse.Namespace) -> Results:
    return Results(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=_command(args),
        machine=this_machine(),
        contenders={
            label: {"title": CONTENDERS[label].title, "server": CONTENDERS[label].plain}
            for label in args.only
        },
        titles={key: kind.title for key, kind in ROWS.items()},
    )


def main() -> int:
    """Measure all, print the table; 1 when plait itself failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that servers are stopped
    args, begun = _arguments(), time.monotonic()
    files = args.files or Path(tempfile.mkdtemp(prefix="plait-bench-"))
    files.mkdir(parents=True, exist_ok=True)
    places = Venvs.below(args.peers.absolute(), files.absolute(), args.model)
    results, path = _new_results(args), _path(args)
    reps = args.reps or (QUICK_REPS if args.quick else 5)
    scale = QUICK_SCALE if args.quick else 1.0
    plan = Plan(args.only, args.rows, reps, scale, 60 * args.minutes)
    weights = SERVERS["plait"](places).weights
    results.bandwidth = measure_bandwidth(weights.stat().st_size) if weights else None
    with ExitStack() as stack:
        servers: dict[str, Running] = {}
        for name in _needed(args.only, args.rows):
            results.servers[name] = Facts()
            found = _start(name, places, results.servers[name], 1 if args.quick else 2, stack)
            if found is not None:
                servers[name] = found
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_measure(servers, plan, results, path, begun))
    save(results, path)
    print(table(results))
    own = own_label(results)
    facts = results.servers.get(own, Facts())
    faults = [cells[own].fault for cells in results.rows.values() if own in cells]
    return int(any([facts.fault, *faults]))


if __name__ == "__main__":
    sys.exit(main())
