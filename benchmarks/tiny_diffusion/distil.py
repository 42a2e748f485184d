"""Certainty-forcing distillation: the model learns to be sure at once of what it would say anyway.

Its own answers, decoded one token a step, become the texts. The loss is cross-entropy on both
complementary copies plus BETA times the entropy, sharpened by TEMPERATURE, of the hidden tokens
that it gets right already. Source: dParallel, arXiv:2509.26488, section 3. What differs: all
weights learn, not low-rank additions; every block of the answer is noisy at once, each behind clean
ones; and rates are those of training rather than one half, since most answers are a single block,
which decoding meets all hidden.

    python -m benchmarks.tiny_diffusion.distil CHECKPOINT OUT --cases 2000 --steps 1200
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from benchmarks.tasks.catalog import make_case
from benchmarks.tiny_diffusion import tokenizer as tiny_tokenizer
from benchmarks.tiny_diffusion.data import FULL, MIX, whole
from benchmarks.tiny_diffusion.decode import canvas, decode
from benchmarks.tiny_diffusion.layout import Batch, collate, pack
from benchmarks.tiny_diffusion.network import Network
from benchmarks.tiny_diffusion.noise import two_copies
from benchmarks.tiny_diffusion.tokenizer import END, prompt_ids
from benchmarks.tiny_diffusion.train import averaged

BETA = 0.5
TEMPERATURE = 0.5
RATE = 2e-4
WARM_UP = 50
BLOCKS = {8: 0.2, 16: 0.2, 32: 0.35, FULL: 0.25}
SEED = 900_000  # a training seed that the first stage did not use
AT_ONCE = 100
LOG_EVERY = 50


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and what the model answers to it."""

    prompt: list[int]
    answer: list[int]


def own_answers(
    network: Network, tokenizer: Tokenizer, cases: int, *, block: int = 32
) -> list[Sample]:
    """Decode the answers to `cases` training prompts, in the shares of the training mix."""
    rng = np.random.default_rng(SEED)
    shares = np.array(list(MIX.values()))
    tasks = rng.choice(list(MIX), size=cases, p=shares / shares.sum())
    prompts = [
        prompt_ids(tokenizer, make_case(str(task), SEED, i).prompt) for i, task in enumerate(tasks)
    ]
    states = [canvas(prompt, 32, block) for prompt in prompts]
    for i in range(0, cases, AT_ONCE):
        decode(network, states[i : i + AT_ONCE])
    return [Sample(p, state.answer()) for p, state in zip(prompts, states, strict=True)]


def certainty_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return cross-entropy plus BETA times the entropy of the hidden tokens that are right."""
    weights = batch.weights / batch.weights.sum()
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    right = (logits.argmax(dim=-1) == batch.targets).float() * batch.weights
    logs = (logits / TEMPERATURE).log_softmax(dim=-1)
    entropy = -(logs.exp() * logs).sum(dim=-1)
    certainty = (entropy * right).sum() / right.sum().clamp(min=1)
    return (losses * weights).sum() + BETA * certainty


def batch_of(samples: Sequence[Sample], size: int, rng: np.random.Generator) -> Batch:
    """Draw a batch of own answers, all in blocks of one size."""
    block = int(rng.choice(list(BLOCKS), p=list(BLOCKS.values())))
    rows = []
    for i in rng.integers(len(samples), size=size):
        text = whole(samples[i].prompt, samples[i].answer, block, rng)
        rows.append(pack(text, two_copies(text, rng)))
    return collate(rows)


def distil(network: Network, samples: Sequence[Sample], steps: int, size: int, log: Path) -> None:
    """Train the network in place."""
    network.requires_grad_(True)
    optimiser = AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    rng, began = np.random.default_rng(SEED + 1), time.monotonic()
    for step in range(steps):
        batch = batch_of(samples, size, rng)
        loss = certainty_loss(network(batch.inputs, batch.wanted), batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        share = min(1.0, (step + 1) / WARM_UP, 2.0 * (1 - step / steps))  # halfway, then to zero
        for group in optimiser.param_groups:
            group["lr"] = RATE * share
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            entry = {"step": step + 1, "seconds": round(time.monotonic() - began)}
            with log.open("a") as file:
                file.write(json.dumps({**entry, "loss": loss.item()}) + "\n")
    network.requires_grad_(False)


def main() -> None:
    """Read the command line and distil."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="checkpoint to write")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network, step = averaged(args.checkpoint)
    began = time.monotonic()
    samples = own_answers(network, tiny_tokenizer.build(), args.cases)
    unfinished = sum(END not in sample.answer and len(sample.answer) >= 32 for sample in samples)
    print(f"{len(samples)} answers in {time.monotonic() - began:.0f} s, {unfinished} without end")
    distil(network, samples, args.steps, args.batch, args.out.with_suffix(".jsonl"))
    torch.save({"step": step + args.steps, "mean": list(network.parameters())}, args.out)


if __name__ == "__main__":
    main()
