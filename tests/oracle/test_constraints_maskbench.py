"""The gate of law 3: no accepted schema lets an invalid instance through the real mask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"

STYLES = ("plait", "plait-any", "plait-standard")
# corpus, style, least schemas enforced, most valid instances refused
BOUNDS = [
    ("maskbench-sample.jsonl.gz", "plait", 1018, 92),
    ("maskbench-sample.jsonl.gz", "plait-any", 1018, 1),
    ("json-schema-test-suite-draft2020-12.tar.gz", "plait", 380, 231),
    ("json-schema-test-suite-draft2020-12.tar.gz", "plait-standard", 380, 2),
]


@pytest.mark.slow
@pytest.mark.parametrize("corpus", dict.fromkeys(corpus for corpus, *_ in BOUNDS))
def test_no_invalid_instance_is_accepted(corpus: str, tmp_path: Path) -> None:
    """Runs in processes of their own, as schemas of unknown people should."""
    path = DATA / corpus
    if not path.exists():
        pytest.skip(f"{corpus} is not beside the repository; it has no licence to be inside")
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.structured", "suite", str(path)]
    command += ["--drafts", "draft2020-12", "--engines", ",".join(STYLES), "--output", str(found)]

    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (section,) = json.loads(found.read_text())["sections"]
    totals = {name: engine["total"] for name, engine in section["engines"].items()}
    assert [name for name, total in totals.items() if total["wrong"] or total["failed"]] == []
    for style, enforced, refused in (bound[1:] for bound in BOUNDS if bound[0] == corpus):
        assert totals[style]["enforced"] >= enforced
        assert totals[style]["refused"] <= refused
