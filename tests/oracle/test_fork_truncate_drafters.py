"""What drafters remember of a sequence is derived from its text: forks and cuts prove it.

Two drafters of a kind, with nothing in common, see the same sequence grow. One of the sequences is
forked and its fork goes its own way: the drafts for both sequences stay alike. Then one is cut, and
drafts like a state that is built from what is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest, DraftBudget
from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.contract.registry import Choice, choose
from plait.decoders.contract.text import NoiseKey, Text
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.drafting import SpeculationState
from plait.decoders.speculative.speculator import Speculator
from plait.decoders.speculative.stores.namespaces import DraftStores
from plait.decoders.speculative.tree import parents_of
from plait.server.engine.draft_model.cached import CachedDraftModel
from tests.fixtures.draft_models import assert_empty, table_draft_model
from tests.fixtures.table_model import TableModel
from tests.fixtures.tiny_heads import HIDDEN, tiny_head, write_head

VOCAB = 24
PROMPTS = 3  # of ppd and lud
STEPS = 6
Make = Callable[[], tuple[Drafter[Any], CachedDraftModel]]

KINDS: dict[str, dict[str, Any]] = {
    "aded": {"name": "aded", "learn": False},
    "aded as published": {"name": "aded", "preset": "paper", "learn": False},
    "chimera": {"name": "chimera", "confidence": 0.0},
    "draft-model": {"name": "draft-model", "min_survival": 0.0},
    "eagle": {"name": "eagle", "confidence": 0.0},
    "jacobi": {"name": "jacobi"},
    "lud": {"name": "lud"},
    "n-gram": {"name": "n-gram", "min_n": 1},
    "n-gram as in vllm": {"name": "n-gram", "preset": "vllm", "min_n": 2, "max_n": 2},
    "pearl": {"name": "pearl"},
    "pearl as published": {"name": "pearl", "preset": "paper"},
    "ppd": {"name": "ppd", "length": 12},
    "prediction": {"name": "prediction"},
    "suffix": {"name": "suffix"},
    "suffix tree": {"name": "suffix", "tree": True},
    "superposed": {"name": "superposed", "length": 12},
    "superposed-tree": {"name": "superposed-tree"},
}


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], torch.Tensor]:
    """Return weight files with random heads, and the embedding that both are made for."""
    folder = tmp_path_factory.mktemp("heads")
    found = {name: tiny_head(name, VOCAB, window=8) for name in ("chimera", "eagle")}
    paths = {name: write_head(head, folder) for name, head in found.items()}
    paths["ppd"] = folder / "ppd.safetensors"
    accuracy = np.array([[0.5, 0.2], [0.4, 0.2], [0.3, 0.1]], dtype=np.float32)
    save_file({"accuracy": accuracy, "accuracy_sampled": accuracy}, paths["ppd"])
    return paths, found["eagle"].embedding


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def make(request: pytest.FixtureRequest, heads: tuple[dict[str, Path], torch.Tensor]) -> Make:
    """Return a function that makes a drafter of one kind, with a draft model of its own."""
    paths, embedding = heads
    choice = choose({"drafter": request.param}, "drafter")
    assert isinstance(choice, Choice)

    def made() -> tuple[Drafter[Any], CachedDraftModel]:
        model = table_draft_model(TableModel(VOCAB))
        stores = DraftStores()
        stores.add("", tokens(random.Random(5), 200), is_imported=True)
        context = DrafterContext(
            VOCAB,
            num_embeddings=PROMPTS,
            embedding=embedding,
            heads=paths,
            draft_model=model,
            stores=stores,
        )
        drafter: Drafter[Any] = choice.method.make(choice.options, context=context)
        return drafter, model

    return made


def tokens(rng: random.Random, count: int) -> list[int]:
    """Return tokens that repeat themselves, as texts do."""
    words = [[1, 2, 3, 4], [5, 6, 7], [2, 3, 8], [9]]
    found: list[int] = []
    while len(found) < count:
        found += rng.choice(words)
    return found[:count]


def request_for(text: Text) -> DecodeRequest:
    """Return the request of a sequence; all of them are sampled, and have a prediction."""
    sampling = SamplingParams(temperature=0.9, seed=3)
    extras = PromptExtras(prediction_token_ids=tokens(random.Random(9), 60))
    return DecodeRequest(text, sampling, 200, frozenset(), None, extras=extras)


class Running:
    """One sequence at one drafter."""

    def __init__(self, drafter: Drafter[Any], text: Text, state: Any = None) -> None:
        self.drafter = drafter
        self.text = text
        self.state = drafter.start(request_for(text)) if state is None else state
        assert self.state is not None

    def draft(self) -> Draft:
        """Ask for a draft. The first call may only begin to draft, in a thread."""
        return self.drafter.propose([DraftRequest(self.state, self.text, [], 12, None)])[0]

    def verify(self, draft: Draft, rng: random.Random) -> None:
        """Accept a random path of a draft and one more token, as a pass would."""
        size, parents = len(draft.token_ids), list(parents_of(draft))
        rows, emitted, node = [0], list[int](), -1
        while (children := [i for i in range(size) if parents[i] == node]) and rng.random() < 0.8:
            node = rng.choice(children)
            if draft.token_ids[node] >= VOCAB:
                break
            rows.append(node + 1)
            emitted.append(draft.token_ids[node])
        emitted.append(rng.choice((1, 2, 3, 5, 9)))
        drawn = [rng.randrange(VOCAB) for _ in range(size + 1)]
        noise = torch.Generator().manual_seed(rng.randrange(2**31))
        logits = torch.randn(size + 1, VOCAB, generator=noise)
        hidden = torch.randn(size + 1, HIDDEN, generator=noise)
        result = VerificationResult(draft.token_ids, parents, rows, drawn, emitted, logits, hidden)
        self.text.extend(emitted)
        self.drafter.observe(self.state, self.text, result)

    def run(self, rng: random.Random, steps: int) -> list[Draft]:
        """Draft and verify some steps; return the drafts."""
        drafts = []
        for _ in range(steps):
            drafts.append(self.draft())
            self.verify(drafts[-1], rng)
        return drafts

    def fork(self, child: int) -> Running:
        """Return a copy of the sequence with noise of its own."""
        text = self.text.fork(child)
        return Running(self.drafter, text, self.drafter.fork(self.state, request_for(text)))

    def cut(self, length: int) -> None:
        """Cut the text."""
        self.text.truncate(length)
        self.state = self.drafter.truncate(self.state, request_for(self.text))

    def finish(self) -> None:
        """End the sequence."""
        self.drafter.finish(self.state, self.text)


def alike(one: Draft, other: Draft) -> bool:
    """Tell whether two drafts are the same."""
    return (
        list(one.token_ids) == list(other.token_ids)
        and list(one.acceptance_probs) == pytest.approx(list(other.acceptance_probs))
        and list(parents_of(one)) == list(parents_of(other))
        and one.can_extend == other.can_extend
    )


def assert_alike(have: list[Draft], want: list[Draft]) -> None:
    """Assert that two sequences had the same drafts."""
    for step, (one, other) in enumerate(zip(have, want, strict=True)):
        assert alike(one, other), (step, one, other)


def begin(make: Make, seed: int) -> tuple[Running, CachedDraftModel]:
    """Return a sequence that has run some steps."""
    drafter, model = make()
    running = Running(drafter, Text(tokens(random.Random(seed), 30), NoiseKey(3, seed % 3)))
    running.run(random.Random(seed), STEPS)
    return running, model


@pytest.mark.parametrize("seed", range(4))
def test_a_fork_and_its_parent_never_see_each_other_again(make: Make, seed: int) -> None:
    running, model = begin(make, seed)
    alone, _ = begin(make, seed)
    child = running.fork(1)
    for step in range(STEPS):
        want = alone.run(random.Random(step), 1)
        child.run(random.Random(100 + step), 1)
        assert_alike(running.run(random.Random(step), 1), want)
    child.finish()
    assert_alike(running.run(random.Random(7), 2), alone.run(random.Random(7), 2))
    running.finish()
    assert_empty(model)


@pytest.mark.parametrize("seed", range(4))
def test_a_state_that_is_cut_drafts_like_one_built_from_what_is_left(make: Make, seed: int) -> None:
    rng = random.Random(seed)
    running, model = begin(make, seed)
    for _ in range(3):
        length = rng.randint(running.text.prompt_length, len(running.text))
        running.cut(length)
        fresh = Running(make()[0], running.text.with_noise(running.text.noise))
        seed = rng.randrange(1000)
        have, want = (each.run(random.Random(seed), STEPS) for each in (running, fresh))
        assert_alike(have, want)
    running.finish()
    assert_empty(model)


@pytest.mark.parametrize("seed", range(4))
def test_a_fork_that_is_shorter_and_goes_on_otherwise_drafts_like_a_new_state(
    make: Make, seed: int
) -> None:
    """A search forks a sequence at some length, with other tokens behind it."""
    running, _ = begin(make, seed)
    rng = random.Random(seed)
    for behind in ([], [9], [1, 2, 3]):
        text = running.text.fork(len(behind))
        text.truncate(rng.randint(text.prompt_length, len(text)))
        text.extend(behind)
        twin = Running(
            running.drafter, text, running.drafter.fork(running.state, request_for(text))
        )
        fresh = Running(make()[0], text.with_noise(text.noise))
        have, want = (each.run(random.Random(seed), STEPS) for each in (twin, fresh))
        assert_alike(have, want)


def speculate(
    speculator: Speculator, state: SpeculationState, rng: random.Random, steps: int
) -> list[list[int]]:
    """Draft and verify some steps of one sequence; return the drafts."""
    drafts = []
    for _ in range(steps):
        (tree,) = speculator.propose([state], [12], DraftBudget(12, 1))
        drafts.append(list(tree.token_ids))
        emitted = [*tree.token_ids[: rng.randint(0, len(tree))], rng.choice((1, 2, 5))]
        drawn = [rng.randrange(VOCAB) for _ in range(len(tree) + 1)]
        state.text.extend(emitted)
        rows, nothing = range(len(emitted)), torch.empty(0, 0)
        speculator.record(
            state,
            VerificationResult(tree.token_ids, tree.parents, rows, drawn, emitted, nothing, None),
        )
    return drafts


def speculating(seed: int) -> tuple[Speculator, SpeculationState]:
    """Return a speculator, and a sequence with several drafters that has run some steps."""
    always = [{"name": name, "always": True} for name in ("prediction", "suffix", "n-gram")]
    methods = resolve_decoding({"drafter": always}).methods
    speculator = Speculator(DrafterContext(VOCAB), CostCurve())
    text = Text(tokens(random.Random(seed), 30), NoiseKey(3))
    state = speculator.start(replace(request_for(text), methods=methods))
    assert state is not None
    speculate(speculator, state, random.Random(seed), STEPS)
    return speculator, state


@pytest.mark.parametrize("seed", range(4))
def test_a_fork_of_several_drafters_counts_for_itself(seed: int) -> None:
    """It begins with its parent's counts and drafts as that would; nothing it does comes back."""
    speculator, state = speculating(seed)
    _, alone = speculating(seed)
    counts = dict(state.drafted), dict(state.accepted)
    text = state.text.fork(1)
    child = speculator.fork(state, request_for(text))
    assert child is not None
    assert (child.drafted, child.accepted) == counts
    speculate(speculator, child, random.Random(seed), STEPS)
    assert child.drafted != counts[0]
    assert (state.drafted, state.accepted) == counts
    assert state.acceptance == alone.acceptance
    speculator.finish(child)
    have, want = (
        speculate(made, each, random.Random(7), STEPS)
        for made, each in ((speculator, state), (speculating(seed)[0], alone))
    )
    assert have == want


def test_only_the_first_sequences_teach_later_requests() -> None:
    """What a fork begins with is its parent's to add, who may not live to add it."""
    speculator, state = speculating(0)
    stores = speculator._context.stores
    child = speculator.fork(state, request_for(state.text.fork(1)))
    assert child is not None
    speculator.finish(child)
    assert stores.find("") is None
    speculator.finish(state)
    assert stores.find("") is not None


@pytest.mark.parametrize("seed", range(4))
def test_a_cut_keeps_the_counts_and_drafts_like_a_new_state(seed: int) -> None:
    speculator, state = speculating(seed)
    counts = dict(state.drafted)
    state.text.truncate(random.Random(seed).randint(30, len(state.text)))
    state = speculator.truncate(state, request_for(state.text))
    assert state.drafted == counts
    fresh_speculator, _ = speculating(seed + 10)
    methods = resolve_decoding({"drafter": [b.drafter.name for b in state.bindings]}).methods
    fresh = fresh_speculator.start(
        replace(request_for(state.text.with_noise(state.text.noise)), methods=methods)
    )
    assert fresh is not None
    fresh.always = True
    (have,), (want,) = (
        made.propose([each], [12], DraftBudget(12, 1))
        for made, each in ((speculator, state), (fresh_speculator, fresh))
    )
    assert have.token_ids == want.token_ids
