"""The benchmark of a-star: its task, its networks and how answers are counted."""

from __future__ import annotations

import random
from pathlib import Path

import httpx
import pytest
import torch

from benchmarks.step_search import serving, task
from benchmarks.step_search.__main__ import Bench
from benchmarks.step_search.network import export, new_network, packed, save_verifier
from benchmarks.step_search.train import solution_loss, train
from benchmarks.step_search.verifier import Verifier, served
from plait.server.models.catalog import resolve
from plait.server.prompt.tokenizer import load_tokenizer

TERMS = [7, 8, 3, 1, 1, 1, 1, 1]
WHOLE = "7+8=15\n15+3=18\n18+1=19\n19+1=20\n20+1=21\n21+1=22\n22+1=23\n"


def test_solutions_are_sums() -> None:
    assert "".join(task.steps_of(TERMS)) == WHOLE
    rng = random.Random(0)
    for _ in range(50):
        terms = task.problem(rng)
        last = task.steps_of(terms)[-1]
        assert int(last.partition("=")[2]) == sum(terms)
        assert len(task.encode("".join(task.steps_of(terms)))) < task.MAX_TOKENS


def test_right_is_what_has_all_steps() -> None:
    assert task.is_right(TERMS, WHOLE)
    assert not task.is_right(TERMS, WHOLE[:-1])
    assert not task.is_right(TERMS, WHOLE.replace("15", "16"))


def test_a_verifier_reads_whole_steps() -> None:
    prompt = task.prompt_of(TERMS)
    cut = task.read(prompt, "7+8=15\n15+", is_complete=False)
    assert task.decode(cut) == prompt + "7+8=15\n"
    assert task.read(prompt, "7+", is_complete=False) == task.encode(prompt)
    whole = task.read(prompt, WHOLE, is_complete=True)
    assert whole == [*task.encode(prompt + WHOLE), task.END]


def test_a_score_is_the_probability_of_the_steps(tmp_path: Path) -> None:
    """Of several texts at once, against one token after the other."""
    torch.manual_seed(1)
    network = new_network().eval()
    save_verifier(network, tmp_path)
    texts = [("1+2:", "1+2=3\n3", False), ("1+2+3:", "1+2=4\n", True), ("4:", "", False)]
    have = Verifier(tmp_path).score(texts)
    for (prompt, completion, ends), score in zip(texts, have, strict=True):
        tokens = task.read(prompt, completion, is_complete=ends)
        want = 1.0
        for at in range(len(prompt), len(tokens)):
            with torch.inference_mode():
                logits = network(packed([tokens[:at]]), torch.tensor([at - 1]))
            want *= float(logits.softmax(dim=1)[0, tokens[at]])
        assert score == pytest.approx(want, rel=1e-4)
    assert have[2] == 1


def test_both_networks_are_trained_and_served(tmp_path: Path) -> None:
    """For a second: the answers are nonsense, but they are drawn, scored and counted."""
    torch.manual_seed(0)
    rng = random.Random(0)
    network = new_network()
    before = solution_loss(network, random.Random(1)).item()
    network = train("generator", network, rng, 0.5)
    assert solution_loss(network, random.Random(1)).item() < before
    export(network, tmp_path / "generator")
    save_verifier(network, tmp_path)
    tokenizer = load_tokenizer(resolve(str(tmp_path / "generator")))
    text = task.prompt_of(TERMS) + WHOLE
    assert tokenizer.encode(text) == task.encode(text)
    verifier = Verifier(tmp_path)
    problems = [task.problem(rng) for _ in range(2)]
    with served(verifier) as url:
        body = {"texts": [{"prompt": "1+2:", "text": "1+2=3\n", "is_complete": False}]}
        (score,) = httpx.post(url, json=body).json()["scores"]
        assert score == pytest.approx(verifier.score([("1+2:", "1+2=3\n", False)])[0], rel=1e-4)
        engine = serving.start(tmp_path, [f"verifier={url}"])
        bench = Bench(engine, verifier, problems)
        one, four = bench.sampled([1, 4])
        assert (one.scores, four.scores) == (0, 4)
        assert four.tokens > one.tokens
        found = bench.searched("a-star", num_continuations=2, max_expansions=3)
        assert found.scores >= 3
        assert found.tokens > 0
        engine.close()


def test_the_served_generator_is_the_trained_one(tmp_path: Path) -> None:
    """Greedy tokens of the engine are the network's own."""
    torch.manual_seed(3)
    network = new_network()
    with torch.no_grad():
        network.embedding.mul_(20)
    export(network, tmp_path / "generator")
    engine = serving.start(tmp_path)
    (answer,) = serving.answer(engine, [TERMS], {"search": {"name": "ada-dec", "tau": 1e9}})
    text = task.encode(task.prompt_of(TERMS))
    for token in answer.texts[0][:20]:
        with torch.inference_mode():
            logits = network(packed([text]), torch.tensor([len(text) - 1]))
        assert int(logits.argmax()) == token
        text.append(token)
