"""`plait calibrate ada-dec`: what it measures, what it fits and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from plait.server import cli
from plait.server.calibration import ada_dec
from plait.server.calibration.threshold import CannotCalibrate, fit_logistic, fit_threshold
from plait.server.engine.runner import Runner
from plait.server.models.catalog import resolve
from plait.server.models.load import load_model
from tests.fixtures.tiny_models import write_tiny_model


def test_the_regression_finds_the_law() -> None:
    """20,000 draws: the slope's standard error is 0.03, the intercept's 0.04."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 4, 20_000)
    y = rng.random(20_000) < 1 / (1 + np.exp(-(2.5 - 1.5 * x)))
    slope, intercept = fit_logistic(x, y)
    assert slope == pytest.approx(-1.5, abs=0.12)
    assert intercept == pytest.approx(2.5, abs=0.16)


def test_separable_tokens_are_told_apart() -> None:
    """Right below 1 nat, wrong above, one kind three times as often."""
    low, high = np.linspace(0.1, 0.9, 300), np.linspace(1.1, 2.0, 100)
    found = fit_threshold(np.concatenate([low, high]), np.repeat([True, False], [300, 100]))
    assert 0.9 <= found.tau <= 1.1
    assert found.accuracy == 1
    assert found.num_tokens == 200


def test_what_says_nothing_is_refused() -> None:
    x = np.linspace(0, 2, 200)
    with pytest.raises(CannotCalibrate, match="does not tell"):
        fit_threshold(x, x > 1)
    with pytest.raises(CannotCalibrate, match="195 were the likeliest and 5 were not"):
        fit_threshold(x, x < 1.95)


def test_every_token_of_an_answer_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks as in one pass; against the logits of each prefix alone."""
    model = load_model(resolve(str(write_tiny_model(tmp_path / "m"))), weights="fp32")
    runner = Runner(model, model.new_kv_cache(8), model.backend)
    prompt, answer = list(range(3, 14)), [20, 21, 22, 23, 24, 25, 26, 27]
    whole = list(ada_dec.measure_answer(runner, prompt, answer))
    assert len(whole) == len(answer)
    for place, (entropy, is_first) in enumerate(whole):
        before = [*prompt, *answer[:place]]
        ((want, _),) = ada_dec.measure_answer(runner, before, [0])
        assert entropy == pytest.approx(want, abs=1e-4)
        best = next(t for t in range(model.vocab_size) if first(runner, before, t))
        assert is_first == (best == answer[place])
        assert 0 < entropy < math.log(model.vocab_size)
    monkeypatch.setattr(ada_dec, "ROWS", 4)
    chunked = list(ada_dec.measure_answer(runner, prompt, answer))
    torch.testing.assert_close(torch.tensor(chunked), torch.tensor(whole), atol=1e-4, rtol=0)


def first(runner: Runner, before: list[int], token: int) -> bool:
    ((_, is_first),) = ada_dec.measure_answer(runner, before, [token])
    return is_first


def data(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (['{"prompt": "a", "completion": "b"}', "{"], "line 2"),
        (['{"prompt": "a"}'], "line 1: .*completion"),
        ([""], "has no examples"),
    ],
    ids=str,
)
def test_bad_data_is_named(
    tmp_path: Path, lines: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", "ada-dec", "x", "--data", str(data(tmp_path, *lines))]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == cli.EXIT_USAGE
    with pytest.raises(ValueError, match=complaint):
        ada_dec.read_examples(tmp_path / "data.jsonl")
    assert "data.jsonl" in capsys.readouterr().err


def test_the_command_prints_a_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The served model on its own: most tokens of common phrases are the likeliest ones."""
    text = "The capital of France is Paris. The capital of Germany is Berlin, and of Spain Madrid."
    lines = [json.dumps({"prompt": "Facts:", "completion": f" {text} {i * i}"}) for i in range(6)]
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["calibrate", "ada-dec", "smollm2-135m-instruct", "--data", str(data(tmp_path, *lines))]
        )
    assert ended.value.code == 0
    out = capsys.readouterr().out
    tau = float(out.split()[1])
    assert f'"name": "ada-dec", "tau": {tau:.3f}' in out
