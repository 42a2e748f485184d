"""Train the filter of Learn2PD: which tokens of a block are final already.

Slow decoding gives each prompt its outcome. Then the block is decoded again, at each step settling
exactly the holes whose token already is that of the outcome; the confidences of all its positions
are the filter's input, and whether their tokens are right is what it learns. Where a step settles
nothing, the block is filled from the outcome. Of all checks while it learns, the filter with the
fewest false positives at CUT on steps kept out is kept: those cost accuracy, false negatives only
time. Source: Learn2PD, arXiv:2509.25188, section 3.2. What differs: wrong tokens, which are rare,
weigh together as much as right ones.

    python -m benchmarks.tiny_diffusion.learn2pd CHECKPOINT FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from benchmarks.tiny_diffusion import tokenizer as tiny_tokenizer
from benchmarks.tiny_diffusion.decode import Canvas, canvas, predictions
from benchmarks.tiny_diffusion.distil import own_answers
from benchmarks.tiny_diffusion.network import Network
from benchmarks.tiny_diffusion.tokenizer import END, MASK
from benchmarks.tiny_diffusion.train import averaged

SIZES = (16, 32)
CUT = 0.9
RATE = 3e-3
CHECK_EVERY = 100
TRAINED, KEPT_OUT = 0.8, 0.9  # borders of the three parts


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the filter sees and should say, over all steps of some prompts."""

    confidence: Tensor  # [n, block]
    right: Tensor  # [n, block] bool
    holes: Tensor  # [n, block] bool


@dataclass(frozen=True, slots=True)
class Rates:
    """Errors at CUT, over holes."""

    false_positive: float  # share of the wrong tokens that pass
    false_negative: float  # share of the right ones that do not


def greedy_rollout(network: Network, finished: Sequence[Canvas], block: int) -> Rollout:
    """Decode again, settling all that is right already."""
    states = [canvas(state.tokens[: state.prompt], 0, block) for state in finished]
    for state, outcome in zip(states, finished, strict=True):
        blank = len(outcome.tokens) - len(state.tokens)
        state.tokens += [MASK] * blank
        state.holes += [True] * blank
        state.end = len(outcome.tokens)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    while pairs := [(s, o) for s, o in zip(states, finished, strict=True) if not s.done()]:
        found = predictions(network, [state for state, _ in pairs], settled=True)
        for (state, outcome), (positions, confidence, tokens) in zip(pairs, found, strict=True):
            want = torch.tensor([outcome.tokens[i] for i in positions])
            holes = torch.tensor([state.holes[i] for i in positions])
            right = tokens == want
            parts.append((confidence, right, holes))
            settles = right if (right & holes).any() else torch.ones_like(right)
            _settle(state, positions, want, settles)
    return Rollout(*(torch.stack(part) for part in zip(*parts, strict=True)))


def _settle(state: Canvas, positions: Sequence[int], tokens: Tensor, where: Tensor) -> None:
    for i, token, settles in zip(positions, tokens.tolist(), where.tolist(), strict=True):
        if settles and state.holes[i]:
            state.tokens[i], state.holes[i] = token, False


def train_filter(train: Rollout, check: Rollout, epochs: int, seed: int) -> nn.Sequential:
    """Return the filter with the lowest rate of false positives on `check`."""
    torch.manual_seed(seed)
    size = train.confidence.shape[1]
    layers = [nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(size, size))
    optimiser = AdamW(network.parameters(), lr=RATE)
    best, kept = (2.0, 2.0), network.state_dict()
    wrong = train.holes & ~train.right
    scarce = float((train.holes & train.right).sum() / wrong.sum().clamp(min=1))
    weights = train.holes + wrong * (scarce - 1)
    for epoch in range(epochs):
        loss = F.binary_cross_entropy_with_logits(
            network(train.confidence), train.right.float(), weight=weights
        )
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad()
        if (epoch + 1) % CHECK_EVERY == 0:
            found = rates(network, check)
            order = (round(found.false_positive, 3), found.false_negative)
            if order < best and found.false_negative < 1:
                best, kept = order, {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(kept)
    return network.requires_grad_(False)


@torch.no_grad()
def rates(network: nn.Module, data: Rollout) -> Rates:
    """Return the filter's errors at CUT."""
    passes = (network(data.confidence).sigmoid() > CUT) & data.holes
    wrong, right = data.holes & ~data.right, data.holes & data.right
    return Rates(
        false_positive=float((passes & wrong).sum() / wrong.sum().clamp(min=1)),
        false_negative=float((~passes & right).sum() / right.sum().clamp(min=1)),
    )


def split(data: Rollout) -> tuple[Rollout, Rollout, Rollout]:
    """Return the parts that train, select and report; rows of one step stay together."""
    count = len(data.confidence)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    cuts = order.tensor_split([int(TRAINED * count), int(KEPT_OUT * count)])
    return tuple(  # type: ignore[return-value]
        Rollout(data.confidence[cut], data.right[cut], data.holes[cut]) for cut in cuts
    )


def main() -> None:
    """Read the command line, train a filter per block size and write them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=4000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network, _ = averaged(args.checkpoint)
    tensors: dict[str, Tensor] = {}
    for size in SIZES:
        samples = own_answers(network, tiny_tokenizer.build(), args.cases, block=size)
        finished = [_outcome(sample.prompt, sample.answer, size) for sample in samples]
        train, check, test = split(greedy_rollout(network, finished, size))
        learnt = train_filter(train, check, args.epochs, seed=size)
        print(size, len(train.confidence), "steps;", rates(learnt, test))
        tensors |= {f"block{size}.{name}": value for name, value in learnt.state_dict().items()}
    save_file(tensors, args.folder / "learn2pd.safetensors")


def _outcome(prompt: list[int], answer: list[int], block: int) -> Canvas:
    """Return the canvas as slow decoding left it: the answer, then padding to the border."""
    state = canvas(prompt, len(answer) + 1, block)
    state.tokens[len(prompt) :] = [*answer, *[END] * (state.end - len(prompt) - len(answer))]
    state.holes = [False] * state.end
    return state


if __name__ == "__main__":
    main()
