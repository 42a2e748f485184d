"""The tiny model's training: packing hides what it must, and decoding is what the server does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tasks.catalog import TASKS, make_case
from benchmarks.tiny_diffusion import tokenizer as tiny_tokenizer
from benchmarks.tiny_diffusion.data import FULL, STAGES, batch_at, infilled, ragged_blocks, whole
from benchmarks.tiny_diffusion.decode import Canvas, canvas, decode, predictions
from benchmarks.tiny_diffusion.distil import certainty_loss
from benchmarks.tiny_diffusion.evaluate import wilson
from benchmarks.tiny_diffusion.export import config, export
from benchmarks.tiny_diffusion.layout import (
    PADDING_WEIGHT,
    Text,
    collate,
    masked,
    pack,
    padding_weights,
)
from benchmarks.tiny_diffusion.learn2pd import Rollout, greedy_rollout, rates, train_filter
from benchmarks.tiny_diffusion.network import Network, tiny_spec
from benchmarks.tiny_diffusion.noise import garble, left_to_right, two_copies
from benchmarks.tiny_diffusion.optimiser import orthogonal
from benchmarks.tiny_diffusion.tokenizer import END, MASK, SPECIAL, prompt_ids
from benchmarks.tiny_diffusion.train import Plan, Run, weighted_loss
from plait.kernels.paged_attention import CAUSAL
from plait.kernels.paged_attention import FULL as SEES_ALL
from plait.server.models.catalog import ModelFiles
from plait.server.models.checkpoint import parameter_shapes
from plait.server.models.load import load_model
from plait.server.prompt.chat_prompt import chat_prompt
from plait.server.prompt.tokenizer import load_tokenizer
from tests.parity.feeding import Piece, feed

TOKENIZER = tiny_tokenizer.build()
VOCAB = TOKENIZER.get_vocab_size()
PROMPT, ANSWER = list(range(10, 17)), list(range(20, 31))  # 7 and 11 tokens


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _network(seed: int = 0) -> Network:
    """Return a small network with weights large enough for peaked predictions."""
    torch.manual_seed(seed)
    network = Network(tiny_spec(VOCAB, hidden=64, layers=2, ffn=96)).requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(3.0) if weight.dim() == 3 else weight.add_(0.1 * torch.randn_like(weight))
    return network


def _text(block: int) -> Text:
    return whole(PROMPT, ANSWER, block, _rng())


@given(st.text())
def test_any_text_is_encoded_and_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("task", sorted(TASKS.keys() - {"chain", "latin_square"}))
def test_words_of_the_tasks_are_single_tokens(task: str) -> None:
    case = make_case(task, 0, 0)
    pieces = [TOKENIZER.decode([i]) for i in TOKENIZER.encode(f"{case.prompt}\n{case.gold}").ids]
    assert not any(piece.islower() and len(piece) == 1 for piece in pieces)


def test_a_name_in_a_list_costs_three_tokens() -> None:
    lengths = [len(TOKENIZER.encode("[" + ", ".join(['"Ada Hale"'] * n) + "]").ids) for n in (1, 5)]
    assert lengths == [4, 16]


def test_the_server_reads_the_tokenizer_and_writes_the_same_prompt(tmp_path: Path) -> None:
    tiny_tokenizer.write(tmp_path)
    tokenizer = load_tokenizer(ModelFiles("hf", tmp_path, "tiny"))
    assert tokenizer.eos_token_ids == {END}
    assert tokenizer.special_token_ids == set(range(len(SPECIAL)))
    for task in TASKS:
        prompt = make_case(task, 0, 1).prompt
        served = chat_prompt(tokenizer, [{"role": "user", "content": prompt}])
        assert served == prompt_ids(TOKENIZER, prompt)


def test_a_written_special_token_stays_text(tmp_path: Path) -> None:
    tiny_tokenizer.write(tmp_path)
    tokenizer = load_tokenizer(ModelFiles("hf", tmp_path, "tiny"))
    assert MASK not in chat_prompt(tokenizer, [{"role": "user", "content": "<|mask|>"}])


@pytest.mark.parametrize("block", [1, 4, 8, 16, 32])
def test_texts_end_at_a_border_and_are_padded_with_ends(block: int) -> None:
    text = _text(block)
    assert len(text.tokens) % block == 0 and len(text.tokens) - block < 19 <= len(text.tokens)
    assert [*text.tokens[:18]] == PROMPT + ANSWER and set(text.tokens[18:]) == {END}
    assert [*text.blocks] == [i // block for i in range(len(text.tokens))]
    assert [*np.flatnonzero(text.answer)] == [*range(7, len(text.tokens))]


@pytest.mark.parametrize("seed", range(5))
def test_ragged_blocks_cover_the_text_and_spare_the_prompt(seed: int) -> None:
    blocks = ragged_blocks(70, 90, _rng(seed))
    assert len(blocks) >= 90 and [*blocks[:64]] == [0] * 32 + [1] * 32
    assert set(np.diff(blocks)) <= {0, 1}


def test_only_the_first_end_counts_in_full() -> None:
    weights = padding_weights(_text(8))
    assert [*weights[:19]] == [1.0] * 19 and set(weights[19:]) == {np.float32(PADDING_WEIGHT)}


@pytest.mark.parametrize("block", [4, 8, 32, FULL])
@pytest.mark.parametrize("seed", range(4))
def test_two_copies_hide_every_answer_token_and_no_other(block: int, seed: int) -> None:
    text = _text(block)
    first, second = two_copies(text, _rng(seed))
    assert [*(first.learnt | second.learnt)] == [*text.answer]
    assert all((copy.tokens == MASK).sum() == copy.learnt.sum() for copy in (first, second))


def test_copies_are_complementary_unless_a_block_is_hidden_altogether() -> None:
    text = _text(4)
    for seed in range(20):
        copies = two_copies(text, _rng(seed))
        if len(copies) == 1:  # the other would hide nothing
            continue
        first, second = copies
        for block in np.unique(text.blocks[text.answer]):
            places = text.answer & (text.blocks == block)
            both = first.learnt & second.learnt & places
            assert not both.any() or first.learnt[places].all()


def test_left_to_right_copies_know_what_lies_before_and_nothing_behind() -> None:
    text = _text(FULL)
    for seed in range(20):
        for copy in left_to_right(text, 4, _rng(seed)):
            hidden = np.flatnonzero(copy.learnt)
            assert hidden[0] + 4 > hidden[-1] or copy.learnt[hidden[0] + 4 :].all()


def test_garbled_tokens_are_learnt_and_holes_stay_holes() -> None:
    text = _text(FULL)
    copy = masked(text, text.answer & (np.arange(len(text.tokens)) % 2 == 0))
    struck = 0
    for seed in range(30):
        garbled = garble(text, copy, VOCAB, _rng(seed))
        differs = garbled.tokens != copy.tokens
        struck += int(differs.sum())
        assert not (differs & ~garbled.learnt).any() and not (differs & copy.learnt).any()
    assert struck > 0


def test_an_infilled_hole_lies_within_the_answer_and_the_rest_stays() -> None:
    for seed in range(20):
        text = infilled(PROMPT, ANSWER, FULL, _rng(seed))
        hole = text.tokens[text.answer]
        kept = [*text.tokens[~text.answer], *hole[hole != END]]
        assert sorted(kept) == PROMPT + ANSWER


@pytest.mark.parametrize("block", [1, 4, 8, 16, 32, FULL])
def test_a_packed_copy_sees_what_decoding_sees(block: int) -> None:
    """Law: the logits of every hole are those of the text decoded block by block."""
    network, text = _network(), _text(block)
    copies = two_copies(text, _rng(3))
    batch = collate([pack(text, copies), pack(_text(16), two_copies(_text(16), _rng(4)))])
    logits = network(batch.inputs, batch.wanted)
    place = 0
    for copy in copies:
        for number in np.unique(text.blocks[text.answer]):
            current = text.blocks == number
            holes = np.flatnonzero(copy.learnt & current)
            if not len(holes):
                continue
            tokens = np.where(current, copy.tokens, text.tokens)
            state = _mid_decoding(tokens, copy.learnt & current, block)
            ((positions, _, best),) = predictions(network, [state])
            have = logits[place : place + len(holes)].clone()
            have[:, MASK] = -torch.inf
            assert (positions, best.tolist()) == (holes.tolist(), have.argmax(-1).tolist())
            place += len(holes)


def _mid_decoding(tokens: np.ndarray, holes: np.ndarray, block: int) -> Canvas:
    end = len(tokens)
    return Canvas(tokens.tolist(), holes.tolist(), len(PROMPT), end, block)


def test_batches_follow_from_seed_and_step() -> None:
    one, other = (batch_at(TOKENIZER, 3, 1234, 4) for _ in range(2))
    assert torch.equal(one.inputs.tokens, other.inputs.tokens)
    assert torch.equal(one.targets, other.targets) and torch.equal(one.weights, other.weights)
    assert not torch.equal(one.targets[:9], batch_at(TOKENIZER, 3, 1235, 4).targets[:9])


def test_all_tasks_are_trained() -> None:
    assert all(set(stage.mix) == set(TASKS) for stage in STAGES)
    assert all(sum(stage.mix.values()) == pytest.approx(1) for stage in STAGES)
    assert all(sum(stage.blocks.values()) == pytest.approx(1) for stage in STAGES)


@pytest.mark.parametrize("attend", [CAUSAL, SEES_ALL])
def test_the_served_model_computes_the_same(tmp_path: Path, attend: int) -> None:
    network = _network()
    export(network, tmp_path)
    ours = ("block_size", "block_sizes", "also_full")
    written = {key: value for key, value in config(network.spec).items() if key not in ours}
    written["model_type"] = "qwen3"  # the same layers
    (tmp_path / "config.json").write_text(json.dumps(written))
    model = load_model(ModelFiles("hf", tmp_path, "tiny"), weights="fp32")
    _round_to_bf16(network)
    tokens = [*PROMPT, *[MASK] * 9]
    holes = [i == 15 if attend == CAUSAL else i > 6 for i in range(16)]
    state = Canvas(tokens, holes, 7, 16, 1 if attend == CAUSAL else FULL)
    served = feed(model, model.new_kv_cache(2), Piece(tokens, [1], attend=attend))
    served[:, MASK] = -torch.inf
    ((positions, confidence, found),) = predictions(network, [state])
    best = served.softmax(-1)[positions].max(-1)
    assert best.indices.tolist() == found.tolist()
    assert torch.allclose(best.values, confidence, atol=1e-5)


def _round_to_bf16(network: Network) -> None:
    for weight in network.parameters():
        weight.copy_(weight.to(torch.bfloat16).float())


def test_an_export_has_every_tensor_of_its_description() -> None:
    network = _network()
    shapes = {name: tuple(value.shape) for name, value in network.tensors().items()}
    assert shapes == parameter_shapes(network.spec)


@pytest.mark.parametrize("block", [4, 32, FULL])
def test_decoding_fills_the_surest_hole_of_the_first_open_block(block: int) -> None:
    network = _network()
    state, expected = canvas(PROMPT, 12, block), list[int]()
    while not state.done():
        window = state.window()
        ((positions, confidence, best),) = predictions(network, [state])
        assert all(i in window for i in positions)
        surest = positions[int(confidence.argmax())]
        expected.append(surest)
        state.tokens[surest], state.holes[surest] = int(best[int(confidence.argmax())]), False
    have = canvas(PROMPT, 12, block)
    decode(network, [have])
    assert (have.order, have.tokens) == (expected, state.tokens)


def test_a_batch_decodes_as_each_canvas_alone() -> None:
    network = _network()
    shapes = [(5, 4), (9, 8), (7, FULL), (3, 32)]
    together = [canvas(PROMPT[:n], 10, block) for n, block in shapes]
    alone = [canvas(PROMPT[:n], 10, block) for n, block in shapes]
    decode(network, together)
    for state in alone:
        decode(network, [state])
    assert [state.order for state in together] == [state.order for state in alone]
    assert [state.tokens for state in together] == [state.tokens for state in alone]


def test_a_block_with_an_end_finishes_a_block_causal_canvas() -> None:
    state = canvas(PROMPT, 12, 4)
    state.tokens[7], state.holes[7] = END, False
    assert state.done() and state.answer() == []
    full = canvas(PROMPT, 12, FULL)
    full.tokens[7], full.holes[7] = END, False
    assert not full.done()


def test_orthogonal_matrices_have_singular_values_around_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 32, 64), (2, 64, 32)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.6 and values.max() < 1.3


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    plan = Plan(steps=3, decay=1, batch=2)
    through = Run(tmp_path / "a", plan)
    through.train()
    Run(tmp_path / "b", Plan(steps=2, decay=1, batch=2)).train()
    stopped = json.loads((tmp_path / "b" / "log.jsonl").read_text().splitlines()[0])
    resumed = Run(tmp_path / "b", plan)
    assert (stopped["from"], resumed.step) == (0, 2)
    resumed.train()
    for have, want in zip(resumed.network.parameters(), through.network.parameters(), strict=True):
        assert torch.equal(have, want)


@pytest.mark.parametrize(
    ("right", "cases", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (45, 50, 0.7864, 0.9565)],
)
def test_wilson_intervals_are_the_published_ones(
    right: int, cases: int, low: float, high: float
) -> None:
    assert wilson(right, cases) == pytest.approx((low, high), abs=1e-4)


def test_certainty_is_asked_only_of_what_is_right_already() -> None:
    batch = collate([pack(_text(32), two_copies(_text(32), _rng(0)))])
    right = torch.nn.functional.one_hot(batch.targets, VOCAB).float()
    wrong = right.roll(1, dims=1)
    for scale in (1.0, 4.0):
        plain = weighted_loss(scale * wrong, batch)
        assert torch.allclose(certainty_loss(scale * wrong, batch), plain)
        assert certainty_loss(scale * right, batch) > weighted_loss(scale * right, batch)


def test_a_greedy_rollout_ends_at_the_outcome_and_records_every_step() -> None:
    network = _network()
    outcomes = [canvas(PROMPT[:n], 12, 16) for n in (3, 7)]
    decode(network, outcomes)
    for outcome in outcomes:  # a canvas that met its end has holes left
        outcome.tokens = [END if t == MASK else t for t in outcome.tokens]
        outcome.holes = [False] * len(outcome.holes)
    data = greedy_rollout(network, outcomes, 16)
    assert data.confidence.shape == data.right.shape == data.holes.shape
    steps = [outcome.steps for outcome in outcomes]
    assert len(outcomes) <= len(data.confidence) <= sum(steps) + len(outcomes)
    assert bool(data.holes.any(dim=1).all())


def test_a_filter_learns_what_confidence_tells() -> None:
    torch.manual_seed(0)
    confidence = torch.rand(400, 8)
    data = Rollout(confidence, confidence > 0.5, torch.ones(400, 8, dtype=torch.bool))
    learnt = train_filter(data, data, epochs=400, seed=0)
    found = rates(learnt, data)
    assert found.false_positive < 0.02 and found.false_negative < 0.9
