"""Steps of each head's training on a tiny model: losses are finite, weights move, runs resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.drafter_heads import train_head, train_ppd, training
from benchmarks.drafter_heads.data import load
from benchmarks.drafter_heads.features import load_answers, write
from benchmarks.drafter_heads.frozen import FrozenRows, Reader
from benchmarks.drafter_heads.measure import head_accuracy, ppd_accuracy
from benchmarks.drafter_heads.prompts import HELD_OUT, TRAINING, prompt_at
from benchmarks.drafter_heads.start import fit
from plait.server.models.catalog import resolve
from tests.fixtures.tiny_models import VOCAB, write_tiny_model

LENGTHS, PROMPT = (24, 31, 18), 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tokens = np.random.default_rng(3).integers(3, VOCAB, size=sum(LENGTHS)).astype(np.uint16)
    prompts = [PROMPT] * len(LENGTHS)
    np.savez(folder / "train-0000.npz", tokens=tokens, stops=np.cumsum(LENGTHS), prompts=prompts)
    return folder


def logged(folder: Path, kind: str) -> list[list[float]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [entry[kind] for entry in map(json.loads, lines) if kind in entry]


def test_rows_behind_a_text_are_those_of_the_served_model(model: str, data: Path) -> None:
    reader, rows = Reader(resolve(model)), FrozenRows(resolve(model))
    tokens = load(data)[1].tokens.tolist()
    reading = reader.read(tokens)
    anchors = torch.tensor([6, 11, 20])
    inputs = torch.stack([rows.embedding[tokens[a + 1 : a + 4]] for a in anchors.tolist()])
    want = torch.stack([reading.hidden[a + 1 : a + 4] for a in anchors.tolist()])
    torch.testing.assert_close(rows.forward(inputs, reading, anchors), want, atol=0.05, rtol=0.05)


def test_ppd_learns_and_resumes(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    first = train_ppd.Run(train_ppd.Plan(data, tmp_path, 3, model=model))
    before = first.embeddings.detach().clone()
    first.train()
    assert np.isfinite(logged(tmp_path, "losses")).all()
    assert not torch.equal(first.embeddings, before)
    again = train_ppd.Run(train_ppd.Plan(data, tmp_path, 3, model=model))
    assert again.first_step == 3
    assert torch.equal(again.embeddings, first.embeddings)
    reader, rows = Reader(resolve(model)), FrozenRows(resolve(model))
    greedy, sampled = ppd_accuracy(reader, rows, again.embeddings.detach(), load(data))
    assert greedy.shape == sampled.shape == (3, 10)
    assert (greedy.sum(1) <= 1).all()


@pytest.mark.parametrize("name", ["eagle", "chimera"])
def test_heads_learn_and_resume(
    name: str, model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    monkeypatch.setattr(train_head, "DRAFT_TOKENS", 120)
    monkeypatch.setattr(train_head, "SHORT", 0.5)
    write(Reader(resolve(model)), load(data), tmp_path / "train-0000.npy")
    answers = load_answers(data, tmp_path)
    assert [answer.rows for answer in answers] == [length - PROMPT + 1 for length in LENGTHS]
    plan = train_head.Plan(data, tmp_path, 2, model=model)
    run = train_head.Run(name, answers, plan, answers[:1])
    before = [value.detach().clone() for value in run.head.parameters()]
    run.train()
    assert [len(each) for each in logged(tmp_path, "losses")] == [1, train_head.ROUNDS]
    assert all(np.isfinite(each).all() for each in logged(tmp_path, "losses"))
    (right,) = logged(tmp_path, "right")
    assert len(right) == train_head.ROUNDS
    moved = [not torch.equal(a, b) for a, b in zip(before, run.head.parameters(), strict=True)]
    assert all(moved)
    again = train_head.Run(name, answers, plan)
    assert again.first_step == 2
    for one, other in zip(again.head.parameters(), run.head.parameters(), strict=True):
        assert torch.equal(one, other)
    full = FrozenRows(resolve(model)).embedding
    for shares in head_accuracy(again.head, full, answers, 2, sampled=True):
        assert ((shares >= 0) & (shares <= 1)).all()


def test_held_out_prompts_share_no_material() -> None:
    for name in ("topics", "people", "cities", "jobs", "functions", "passages"):
        assert set(getattr(TRAINING, name)).isdisjoint(getattr(HELD_OUT, name))
    assert prompt_at(TRAINING, 5, 3) == prompt_at(TRAINING, 5, 3)


def test_padding_teaches_nothing(model: str, data: Path, tmp_path: Path) -> None:
    """The losses of answers side by side are those of each alone, weighted by their rows."""
    write(Reader(resolve(model)), load(data), tmp_path / "train-0000.npy")
    answers = load_answers(data, tmp_path)
    plan = train_head.Plan(data, tmp_path / "run", 2, model=model)
    head = train_head.Run("eagle", answers, plan).head
    with torch.no_grad():
        together, *alone = (
            torch.cat(train_head.losses_of(head, train_head.batch_of(each), 2))
            for each in (answers, *([answer] for answer in answers))
        )
    for i, loss in enumerate(together.tolist()):
        rows = [answer.rows - 1 - i % 2 for answer in answers]
        want = np.average([float(each[i]) for each in alone], weights=rows)
        assert loss == pytest.approx(want, rel=0.02)


def test_the_fit_is_the_least_squares_one() -> None:
    generator = torch.Generator().manual_seed(4)
    inputs, matrix = torch.randn(500, 6, generator=generator), torch.randn(3, 6)
    torch.testing.assert_close(fit(inputs, inputs @ matrix.T), matrix, atol=0.05, rtol=0.05)
