"""From cases to training batches; all is drawn afresh from (seed, step) and nothing repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from benchmarks.tasks.catalog import make_case
from benchmarks.tiny_diffusion.layout import Batch, Ints, Text, collate, pack
from benchmarks.tiny_diffusion.noise import GARBLED_BATCHES, garble, left_to_right, two_copies
from benchmarks.tiny_diffusion.tokenizer import END, prompt_ids

FULL = 0  # one block as long as the text: full attention
RAGGED = -1  # borders anywhere behind the prompt

# Shares of the training cases: at first, and once all but the hardest tasks are learnt.
MIX: Mapping[str, float] = {
    "copy": 0.07,
    "reverse": 0.08,
    "sort": 0.09,
    "insert_index": 0.08,
    "remove_index": 0.08,
    "replace_index": 0.08,
    "insert_random": 0.03,
    "remove_random": 0.03,
    "replace_random": 0.03,
    "shuffle": 0.04,
    "latin_square": 0.03,
    "words_to_sentence": 0.05,
    "json_extract": 0.12,
    "add": 0.09,
    "chain": 0.05,
    "echo": 0.05,
}
HARD_MIX: Mapping[str, float] = {
    "copy": 0.03,
    "reverse": 0.04,
    "sort": 0.12,
    "insert_index": 0.04,
    "remove_index": 0.04,
    "replace_index": 0.04,
    "insert_random": 0.07,
    "remove_random": 0.07,
    "replace_random": 0.09,
    "shuffle": 0.10,
    "latin_square": 0.07,
    "words_to_sentence": 0.02,
    "json_extract": 0.09,
    "add": 0.10,
    "chain": 0.06,
    "echo": 0.02,
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the curriculum."""

    until: int  # steps
    longest: int  # list
    blocks: Mapping[int, float]  # share of the batches by block size
    mix: Mapping[str, float]


ALL_BLOCKS = {1: 0.05, 4: 0.15, 8: 0.15, 16: 0.15, 32: 0.25, FULL: 0.2, RAGGED: 0.05}
STAGES = (
    Stage(1200, 4, {1: 0.1, 4: 0.4, 8: 0.3, 16: 0.2}, MIX),
    Stage(2500, 4, {1: 0.05, 4: 0.2, 8: 0.2, 16: 0.2, 32: 0.2, FULL: 0.15}, MIX),
    Stage(7000, 6, ALL_BLOCKS, MIX),
    Stage(10**9, 6, ALL_BLOCKS, HARD_MIX),
)
INFILLING = 0.1  # of the full batches' texts
BLOCKWISE = 0.3  # of the others, decoded block by block


def stage_at(step: int) -> Stage:
    """Return the part of the curriculum that a step belongs to."""
    return next(stage for stage in STAGES if step < stage.until)


def batch_at(tokenizer: Tokenizer, seed: int, step: int, size: int) -> Batch:
    """Make the batch of one step. Law: the same arguments give the same batch."""
    rng = np.random.default_rng([seed, step])
    stage = stage_at(step)
    block = int(rng.choice(list(stage.blocks), p=list(stage.blocks.values())))
    garbled = rng.random() < GARBLED_BATCHES
    names, shares = list(stage.mix), np.array(list(stage.mix.values()))
    rows = []
    for i in range(size):
        task = str(rng.choice(names, p=shares / shares.sum()))
        case = make_case(task, seed, step * size + i, longest=stage.longest)
        prompt = prompt_ids(tokenizer, case.prompt)
        answer = tokenizer.encode(case.gold).ids
        infills = block == FULL and rng.random() < INFILLING
        text = (infilled if infills else whole)(prompt, answer, block, rng)
        blockwise = block == FULL and not infills and rng.random() < BLOCKWISE
        copies = left_to_right(text, 32, rng) if blockwise else two_copies(text, rng)
        if garbled:
            copies = [garble(text, copy, tokenizer.get_vocab_size(), rng) for copy in copies]
        rows.append(pack(text, copies))
    return collate(rows)


def whole(prompt: list[int], answer: list[int], block: int, rng: np.random.Generator) -> Text:
    """Return a prompt, its answer and the padding up to a border."""
    ends = len(prompt) + len(answer) + 1
    if block == FULL:
        sizes = np.array([8, 32, 64, 128 if len(answer) < 4 else 32])
        canvas = int(rng.choice(sizes, p=[0.3, 0.45, 0.15, 0.1]))
        length = len(prompt) + -(-(len(answer) + 1) // canvas) * canvas
        blocks = np.zeros(length, np.int64)
    elif block == RAGGED:
        blocks = ragged_blocks(len(prompt), ends, rng)
    else:
        blocks = np.arange(-(-ends // block) * block) // block
    tokens = np.full(len(blocks), END)
    tokens[: ends - 1] = prompt + answer
    return Text(tokens, blocks, np.arange(len(blocks)) >= len(prompt))


def infilled(prompt: list[int], answer: list[int], block: int, rng: np.random.Generator) -> Text:
    """Return a text with something missing from its answer, and nothing hidden around it.

    In every second text the hole is longer than what is missing, and ends in padding.
    """
    del block
    start = int(rng.integers(len(answer)))
    stop = int(rng.integers(start + 1, len(answer) + 1))
    extra = int(rng.integers(1, 9)) if rng.random() < 0.5 else 0
    head, tail = prompt + answer[:start], answer[stop:]
    tokens: Ints = np.array([*head, *answer[start:stop], *[END] * extra, *tail], np.int64)
    hole = np.zeros(len(tokens), np.bool_)
    hole[len(head) : len(tokens) - len(tail)] = True
    return Text(tokens, np.zeros(len(tokens), np.int64), hole)


def ragged_blocks(prompt: int, ends: int, rng: np.random.Generator) -> Ints:
    """Return blocks of 32 up to the prompt's last border, then of 2 to 32 tokens as drawn."""
    sizes = [32] * (prompt // 32)
    while sum(sizes) < ends:
        sizes.append(int(rng.integers(2, 33)))
    return np.repeat(np.arange(len(sizes)), sizes)
