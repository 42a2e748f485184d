"""The gate of law 3: no accepted schema lets an invalid instance through the real mask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"

# corpus, least schemas accepted, least valid instances accepted in their own or the schema's order
CORPORA = [
    ("maskbench-sample.jsonl.gz", 990, 1150),
    ("json-schema-test-suite-draft2020-12.tar.gz", 290, 410),
]


@pytest.mark.slow
@pytest.mark.parametrize(("corpus", "schemas", "instances"), CORPORA)
def test_no_invalid_instance_is_accepted(
    corpus: str, schemas: int, instances: int, tmp_path: Path
) -> None:
    """Runs in a process of its own, as schemas of unknown people should."""
    path = DATA / corpus
    if not path.exists():
        pytest.skip(f"{corpus} is not beside the repository; it has no licence to be inside")
    counts = tmp_path / "counts.json"
    command = [sys.executable, str(ROOT / "benchmarks/maskbench.py"), "--json", str(counts)]

    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    have = json.loads(counts.read_text())[corpus]
    assert have["leaks"] == []
    assert have["accepted"] >= schemas
    accepted = have["valid, accepted as given"] + have["valid, accepted in schema order"]
    assert accepted >= instances
