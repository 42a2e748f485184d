"""Compares two builds: what clients see must be the same, and nothing slower or larger.

    python -m benchmarks.compare_builds --before PATH --after PATH [texts] [speed]

Each path is a checkout with its own .venv (`make dev`). Texts: random requests of all kinds go to
both with the same seeds; ids, times and fingerprints are left out, and counts of passes where they
follow the clock. Speed: both serve beside each other and are measured in turns. Exit code 1 when an
answer differs, or the median of a row's paired ratios is under 0.98 (memory: over 1.03).
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.compare_builds.builds import Build
from benchmarks.compare_builds.speed import MEASURES, compare_speed
from benchmarks.compare_builds.texts import SETTINGS, compare_texts
from benchmarks.peers import names_among


def checkout(text: str) -> Path:
    """Return a path as an option; raise argparse.ArgumentTypeError where there is no folder."""
    path = Path(text).absolute()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"no folder {text}; give a checkout, not a commit")
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("what", nargs="*", help="texts, speed; both unless named")
    parser.add_argument("--before", type=checkout, required=True, help="a checkout")
    parser.add_argument("--after", type=checkout, required=True, help="another one")
    parser.add_argument(
        "--settings", type=names_among([*SETTINGS]), default=[*SETTINGS], metavar="A,B"
    )
    parser.add_argument("--requests", type=int, default=300, help="for each setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--rows", action="append", choices=[*MEASURES], help="what is measured; may be repeated"
    )
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder for logs, and answers of clean commits")
    args = parser.parse_args()
    if unknown := {*args.what} - {"texts", "speed"}:
        parser.error(f"neither texts nor speed: {', '.join(unknown)}")
    return args


def main() -> int:
    """Compare; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that servers are stopped
    args = _arguments()
    keep = args.keep or Path(tempfile.mkdtemp(prefix="plait-compare-"))
    keep.mkdir(parents=True, exist_ok=True)
    builds = Build("before", args.before), Build("after", args.after)
    print("; ".join(f"{build.name}: {build.commit or build.path}" for build in builds))
    is_bad = False
    if "texts" in args.what or not args.what:
        is_bad |= bool(compare_texts(builds, args.settings, args.requests, args.seed, keep))
    if "speed" in args.what or not args.what:
        found = compare_speed(builds, args.rows or [*MEASURES], args.reps, keep)
        is_bad |= any(row.is_bad for row in found)
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
