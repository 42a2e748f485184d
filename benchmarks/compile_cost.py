"""CPU time that schemas take to compile, builds of plait side by side.

    python -m benchmarks.compile_cost --build before=OTHER/.venv/bin/python [--reps 3] [CORPUS]

Each build is a Python that has some plait installed; `after=` this one is added. Builds take turns,
each in a process of its own, and a schema's time is the least of its repetitions: compiling alone,
as the compile service does it, with SmolLM2's vocabulary. What a worker then does again is `load`.
The median is wall clock: it is below the 4 ms that some systems count CPU time in.
"""

from __future__ import annotations

import argparse
import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEFAULT = Path(__file__).resolve().parents[2] / "shared/data/maskbench-sample.jsonl.gz"
MODEL = "smollm2-135m-instruct"
DEADLINE_S = 5.0  # of CPU, the server's own
MAX_BYTES = 2**20
COLUMNS = ("accepted", "timeouts", "p50 (wall)", "p99", "max", "sum", "load sum")


class Deadline(Exception):
    """A schema took too long."""


def main() -> int:
    """Print the table; return 1 where a build timed out or accepts fewer than the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("corpus", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--build", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sys.stdout.write(json.dumps(measure(args.corpus)))
        return 0
    pythons = dict(text.split("=", 1) for text in args.build) | {"after": sys.executable}
    runs: dict[str, list[Any]] = {name: [] for name in pythons}
    for _ in range(args.reps):
        for name, python in pythons.items():
            runs[name].append(_run(python, args.corpus))
    tables = {name: summary(found) for name, found in runs.items()}
    _print(tables)
    first, last = next(iter(tables.values())), tables["after"]
    return int(last["timeouts"] > 0 or last["accepted"] < first["accepted"])


def _run(python: str, corpus: Path) -> Any:
    command = [python, "-P", str(Path(__file__).resolve()), "--child", str(corpus.resolve())]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(corpus: Path) -> list[dict[str, Any]]:
    """Compile and load every schema of a corpus with the build that is installed here."""
    from plait.decoders.constrained.vocabulary import make_vocabulary  # noqa: PLC0415, of a build
    from plait.server.models.catalog import resolve  # noqa: PLC0415
    from plait.server.prompt.tokenizer import load_tokenizer  # noqa: PLC0415

    tokenizer = load_tokenizer(resolve(MODEL))
    vocabulary = make_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)
    vocabulary.prepare()
    signal.signal(signal.SIGVTALRM, _interrupt)
    with gzip.open(corpus, "rt", encoding="utf-8") as lines:
        return [judge(json.loads(line)["schema"], vocabulary) for line in lines]


def judge(schema: Any, vocabulary: Any) -> dict[str, Any]:
    """Return how one schema ended, and the CPU seconds of compiling and of loading it."""
    from plait.decoders.constrained.compile import compile_constraint  # noqa: PLC0415
    from plait.decoders.constrained.load import ConstraintLoader  # noqa: PLC0415
    from plait.decoders.constrained.spec import (  # noqa: PLC0415
        ConstraintError,
        ConstraintLimits,
        ConstraintSpec,
    )

    spec = ConstraintSpec("json_schema", json.dumps(schema))
    start, began = time.process_time(), time.perf_counter()
    signal.setitimer(signal.ITIMER_VIRTUAL, DEADLINE_S)
    try:
        done = compile_constraint(spec, vocabulary, ConstraintLimits(max_bytes=MAX_BYTES))
        outcome = "accepted"
    except ConstraintError:
        outcome = "refused"
    except Deadline:
        outcome = "timeout"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    end, wall = time.process_time(), time.perf_counter() - began
    if outcome == "accepted":
        parts = [
            getattr(done, name) for name in ("table", "compiled", "grammar") if hasattr(done, name)
        ]
        ConstraintLoader(vocabulary).load("", *parts)
    load = time.process_time() - end
    return {"outcome": outcome, "wall": wall, "compile": end - start, "load": load}


def _interrupt(*_: object) -> None:
    raise Deadline


def summary(runs: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Return counts, and CPU seconds over all schemas, refused ones included."""

    def least(what: str) -> list[float]:
        return sorted(min(row[what] for row in rows) for rows in zip(*runs, strict=True))

    compiled, loaded, wall = least("compile"), least("load"), least("wall")
    outcomes = [row["outcome"] for row in runs[0]]
    values = (
        outcomes.count("accepted"),
        outcomes.count("timeout"),
        wall[len(wall) // 2],
        compiled[int(0.99 * len(compiled))],
        compiled[-1],
        sum(compiled),
        sum(loaded),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _print(tables: dict[str, dict[str, float]]) -> None:
    print("| CPU seconds | " + " | ".join(COLUMNS) + " |")
    print("| --- |" + " ---: |" * len(COLUMNS))
    for name, table in tables.items():
        cells = (f"{v}" if isinstance(v, int) else f"{v:.4f}" for v in table.values())
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
