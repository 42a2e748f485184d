"""Forms on canvases: what is measured, and what the report says of it."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from benchmarks.command_line import run_command
from benchmarks.decoders.cells import Sample
from benchmarks.decoders.objects import TASK
from benchmarks.structured import canvases
from benchmarks.structured.commands import run
from benchmarks.structured.options import StructuredOptions


def test_a_template_filled_with_what_it_hides_is_the_right_answer() -> None:
    served = canvases.load()
    for i, case in enumerate(Sample(cases=9).of(TASK)):
        template = canvases.template_of(served, case, 1 + i % 3, random.Random(i))
        assert len(template.holes) == 1 + i % 3
        hidden = served.tokenizer.encode_inside(case.gold)
        output = [hidden[at] for start, stop in template.holes for at in range(start, stop)]
        assert served.tokenizer.decode(canvases.filled(template, output)) == case.gold


def test_a_run_reports_every_method_and_holes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "canvases.json"
    words = ["canvases", "--cases", "2", "--rounds", "1", "--output", str(output)]
    assert run(run_command(StructuredOptions, words)) == 0
    shown = capsys.readouterr().out
    assert output.with_suffix(".md").read_text() in shown
    report = msgspec.json.decode(output.read_bytes())
    assert len(report["answers"]) == len(canvases.METHODS) * 4
    assert [row["valid"]["value"] for row in report["answers"]] == [1.0] * 16
    assert (
        len({(row["regions"], row["slack"], row["constrained"]) for row in report["holes"]}) == 12
    )
    for method in canvases.METHODS:
        assert f"| {method}, static, t=0 |" in shown
