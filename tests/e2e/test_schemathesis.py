"""Our own OpenAPI document, turned against us: requests that fit it, and requests that don't.

One check is left out: that all data which fit the document are accepted. What a schema can't say
(ids within the vocabulary, a prompt within the context, top_logprobs only with logprobs, ...) is
refused with a 400 none the less.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import API_KEY, BASE_URL

ROOT = Path(__file__).parents[2]
PHASES = "examples,coverage,fuzzing,stateful"
MAX_EXAMPLES = 10  # per operation, in each random phase; coverage brings near 2,000 more


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("base_url", [BASE_URL or "smollm2"], indirect=True)
def test_all_phases(base_url: str, model: str, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{base_url}/openapi.json"),
        *("--phases", PHASES, "--exclude-checks", "positive_data_acceptance"),
        *("--max-examples", str(MAX_EXAMPLES), "--seed", "1", "--no-color"),
        *("--generation-database", "none", "--header", f"Authorization: Bearer {API_KEY}"),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.fixtures.schemathesis_hooks",
        "PLAIT_TEST_MODEL": model,
    }
    have = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert have.returncode == 0, have.stdout[-8000:] + have.stderr[-2000:]
