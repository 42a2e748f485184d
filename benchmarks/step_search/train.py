"""Train a small generator that errs, and a verifier of its steps, on one core in a few minutes.

python -m benchmarks.step_search.train FOLDER

Both learn right solutions to new problems. The generator is stopped before it knows how to add up;
the verifier begins as a copy of it and goes on until it does.
"""

from __future__ import annotations

import argparse
import random
import time
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.step_search import task
from benchmarks.step_search.network import (
    export,
    new_network,
    packed,
    save_verifier,
)
from benchmarks.tiny_diffusion.network import Network
from benchmarks.tiny_diffusion.optimiser import Optimiser

BATCH = 64
WARM_UP = 30  # steps


def train(name: str, network: Network, rng: random.Random, seconds: float) -> Network:
    """Train for some seconds of CPU time; the rate falls linearly to a fiftieth."""
    optimiser = Optimiser(network)
    begun, step = time.process_time(), 0
    while (spent := time.process_time() - begun) < seconds:
        loss = solution_loss(network, rng)
        torch.autograd.backward(loss)
        optimiser.step(min(1.0, (step + 1) / WARM_UP) * max(1 - spent / seconds, 0.02))
        step += 1
        if step % 100 == 0:
            print(f"{name}: step {step}, {spent:.0f} s, loss {loss.item():.3f}", flush=True)
    return network.eval()


def solution_loss(network: Network, rng: random.Random) -> Tensor:
    """Return the loss of the answers to new problems."""
    rows, start = list[list[int]](), 0
    wanted, labels = list[int](), list[int]()
    for _ in range(BATCH):
        terms = task.problem(rng)
        prompt = task.encode(task.prompt_of(terms))
        solution = [*task.encode("".join(task.steps_of(terms))), task.END]
        rows.append([*prompt, *solution[:-1]])
        wanted += range(start + len(prompt) - 1, start + len(rows[-1]))
        labels += solution
        start += len(rows[-1])
    logits = network(packed(rows), torch.tensor(wanted))
    return cross_entropy(logits, torch.tensor(labels))


def main() -> None:
    """Train both and write them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--generator-s", type=float, default=40.0, help="of CPU time")
    parser.add_argument("--verifier-s", type=float, default=45.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    generator = train("generator", new_network(), rng, args.generator_s)
    export(generator, args.folder / "generator")
    verifier = train("verifier", deepcopy(generator), rng, args.verifier_s)
    save_verifier(verifier, args.folder)


if __name__ == "__main__":
    main()
