"""Measures plait and its peers one after the other on this machine, and prints the ratios.

    python -m benchmarks.peers [--only plait,vllm] [--rows single,c8] [--reps 5]

A server is measured only after its answers have passed a gate. Numbers of one run may be compared
with each other; the machine is seldom the same twice. Everything is saved under results/.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import uvloop

from benchmarks.client import ServerFault, connect
from benchmarks.machine import ROOT, Machine, cpu_seconds, this_machine
from benchmarks.report import ROWS, Measured, Report, table
from benchmarks.rows import Bench, RedGate, check
from benchmarks.servers import SERVERS, NotInstalled, NotReady, Running, Venvs, running

WARM_UP_TOKENS = 16
COMPARED = ("plait", "vllm", "llama-q4_1", "llama-q4_0")  # unless other servers are named


async def _measure(server: Running, rows: Sequence[str], reps: int) -> dict[str, Measured]:
    async with connect(server.base_url) as client:
        bench = Bench(client, server.model, reps)
        right = await check(bench)
        measured = {"gate": Measured(right.unit, [right.value], right.notes)}
        await bench.batch([bench.decode(bench.prompt("Hi."), WARM_UP_TOKENS) for _ in range(8)])
        for key in rows:
            samples = [await ROWS[key][1](bench.at(key, rep, {})) for rep in range(reps)]
            values = [sample.value for sample in samples]
            measured[key] = Measured(samples[0].unit, values, samples[0].notes)
            _say(f"  {key}: {measured[key].median:.4g} {measured[key].unit} {measured[key].notes}")
        return measured


def _run(label: str, places: Venvs, rows: Sequence[str], reps: int) -> Report:
    """Start, check and measure one server."""
    _say(f"{label}: starting")
    busy, total, own = *cpu_seconds(), time.process_time()
    try:
        with running(SERVERS[label](places), places.files / f"{label}.log") as server:
            _say(f"  ready after {server.seconds_to_ready:.1f} s")
            start = {"start": Measured("s", [server.seconds_to_ready])}
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                measured = runner.run(_measure(server, rows, reps))
    except NotInstalled as absent:
        return Report(label, fault=str(absent))
    except (NotReady, RedGate, ServerFault) as error:
        return Report(label, fault=f"{error}; its log: {places.files / label}.log")
    busy, total = cpu_seconds()[0] - busy, cpu_seconds()[1] - total
    shares = {
        "machine_busy": round(busy / total, 3),
        "client": round((time.process_time() - own) / total, 3),
    }
    return Report(label, start | measured, shares)


def _save(machine: Machine, reports: Sequence[Report], command: str) -> Path:
    now = datetime.datetime.now(datetime.UTC)
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    commit = machine.plait.rstrip("+")
    path = folder / f"{now:%Y-%m-%d-%H%M}-{machine.slug}-{commit}.json"
    content: Mapping[str, object] = {
        "date": now.isoformat(timespec="seconds"),
        "command": command,
        "machine": asdict(machine),
        "servers": [asdict(report) for report in reports],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
    parser.add_argument("--only", type=names_among([*SERVERS]), default=[*COMPARED], metavar="A,B")
    parser.add_argument("--rows", type=names_among([*ROWS]), default=[*ROWS], metavar="A,B")
    parser.add_argument("--reps", type=int, default=5, help="repetitions of each row")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--vllm", type=Path, default=ROOT / ".venv-vllm", help="its venv")
    parser.add_argument("--llama", type=Path, default=ROOT / ".venv-llama", help="its venv")
    parser.add_argument("--files", type=Path, help="where peers' model files and logs are kept")
    return parser.parse_args()


def _command(args: argparse.Namespace) -> str:
    """Return the command that measures the same; where the peers lie is this machine's affair."""
    words = ["--only", ",".join(args.only), "--rows", ",".join(args.rows), "--reps", str(args.reps)]
    return f"python -m benchmarks.peers {shlex.join(words)}"


def main() -> int:
    """Measure all, print the table; 1 when plait itself failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that servers are stopped
    args = _arguments()
    files = args.files or Path(tempfile.mkdtemp(prefix="plait-bench-"))
    files.mkdir(parents=True, exist_ok=True)
    places = Venvs(args.vllm.absolute(), args.llama.absolute(), files, args.model)
    machine, command = this_machine(), _command(args)
    reports = [_run(label, places, args.rows, args.reps) for label in args.only]
    path = _save(machine, reports, command)
    print(f"{machine.cpu}, {machine.cores} cores, {machine.vector}; torch {machine.torch}")
    print(f"commit {machine.plait}; {command}; {path.relative_to(ROOT)}\n")
    print(table(reports))
    return int(any(report.fault for report in reports if report.label == "plait"))


if __name__ == "__main__":
    sys.exit(main())
