"""The footprint sends each build the same requests, of all kinds, and tells processes apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

from benchmarks.footprint import DIFFUSION, mixed_requests, resident

MODEL = "some-model"


def test_requests_are_the_same_and_of_all_kinds() -> None:
    bodies = mixed_requests(200, [MODEL])
    assert bodies == mixed_requests(200, [MODEL])
    lengths = [len(body["messages"][0]["content"].split()) for body in bodies]
    assert sum("response_format" in body for body in bodies) == 40
    assert sum(body.get("n") == 2 for body in bodies) == 20
    assert sum(length > 600 for length in lengths) == 20
    assert {body["model"] for body in bodies} == {MODEL}
    assert len({json.dumps(body) for body in bodies}) == 200


def test_a_diffusion_model_is_asked_where_there_is_one() -> None:
    asked = Counter(body["model"] for body in mixed_requests(200, [MODEL, DIFFUSION]))
    assert asked == {MODEL: 190, DIFFUSION: 10}


def test_memory_is_told_by_process() -> None:
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        found = resident(os.getpid())
        child.stdin.close()
    assert len(found) >= 2
    assert all(each.rss >= each.pss >= each.uss > 0 for each in found)
