"""Slow, plain decoding of many prompts at once, one token a step: an oracle for the server.

Every step runs the whole text through the network, without a cache. The rule is low-confidence
decoding: the hole of the current block whose best token is the most probable is filled; ties go to
the lower position, and among tokens to the lower id. Source: LLaDA, arXiv:2502.09992, appendix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.tiny_diffusion.data import FULL
from benchmarks.tiny_diffusion.layout import visible
from benchmarks.tiny_diffusion.network import Inputs, Network
from benchmarks.tiny_diffusion.tokenizer import END, MASK

# Sees (confidences, tokens) of a canvas' holes in the current block; returns which to fill.
Rule = Callable[["Canvas", Tensor, Tensor], list[int]]


@dataclass(slots=True)
class Canvas:
    """One prompt and the answer that takes shape behind it."""

    tokens: list[int]  # prompt, then the answer
    holes: list[bool]
    prompt: int  # length
    end: int  # of the answer's room
    block: int  # FULL: attention is full, and the canvas is one block
    steps: int = 0
    order: list[int] = field(default_factory=list)  # positions as they were filled

    def window(self) -> range:
        """Return the positions of the current block: the first with a hole."""
        first = self.holes.index(True)
        if self.block == FULL:
            return range(self.prompt, self.end)
        start = first // self.block * self.block
        return range(start, min(start + self.block, self.end))

    def done(self) -> bool:
        """Say whether no hole is left, or a finished block holds the end."""
        if True not in self.holes:
            return True
        return self.block != FULL and END in self.tokens[self.prompt : self.window().start]

    def answer(self) -> list[int]:
        """Return the answer up to its end."""
        tokens = self.tokens[self.prompt :]
        return tokens[: tokens.index(END)] if END in tokens else tokens


def canvas(prompt: Sequence[int], room: int, block: int) -> Canvas:
    """Return a prompt with `room` holes behind it, rounded up to whole blocks."""
    end = len(prompt) + room
    if block != FULL:
        end = -(-end // block) * block
    blank = end - len(prompt)
    holes = [False] * len(prompt) + [True] * blank
    return Canvas([*prompt, *[MASK] * blank], holes, len(prompt), end, block)


def best_hole(state: Canvas, confidence: Tensor, tokens: Tensor) -> list[int]:
    """Fill the surest hole."""
    del state, tokens
    return [int(confidence.argmax())]


def surer_than(threshold: float) -> Rule:
    """Fill every hole at least so sure, and the surest. Source: Fast-dLLM, arXiv:2505.22618."""

    def rule(state: Canvas, confidence: Tensor, tokens: Tensor) -> list[int]:
        del state, tokens
        sure = set((confidence >= threshold).nonzero()[:, 0].tolist())
        return sorted(sure | {int(confidence.argmax())})

    return rule


@torch.no_grad()
def decode(network: Network, canvases: Sequence[Canvas], rule: Rule = best_hole) -> None:
    """Fill the canvases in place. Cost: a forward pass of all unfinished texts per step."""
    while active := [state for state in canvases if not state.done()]:
        for state, (positions, confidence, tokens) in zip(
            active, predictions(network, active), strict=True
        ):
            chosen = rule(state, confidence, tokens)
            for i in chosen:
                state.tokens[positions[i]] = int(tokens[i])
                state.holes[positions[i]] = False
            state.order += [positions[i] for i in chosen]
            state.steps += 1


def predictions(
    network: Network, canvases: Sequence[Canvas], *, settled: bool = False
) -> list[tuple[list[int], Tensor, Tensor]]:
    """Return positions of each canvas' window, the best tokens' probabilities, and those tokens.

    The positions are the holes; with `settled`, all of the window.
    """
    windows = [state.window() for state in canvases]
    holes = [
        [i for i in window if settled or state.holes[i]]
        for state, window in zip(canvases, windows, strict=True)
    ]
    lengths = [window.stop for window in windows]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    wanted = [int(start) + i for start, hole in zip(starts, holes, strict=True) for i in hole]
    logits = network(_inputs(canvases, lengths), torch.tensor(wanted))
    logits[:, MASK] = -torch.inf
    confidence, tokens = logits.softmax(dim=-1).max(dim=-1)
    sizes = [len(hole) for hole in holes]
    return list(zip(holes, confidence.split(sizes), tokens.split(sizes), strict=True))


def _inputs(canvases: Sequence[Canvas], lengths: Sequence[int]) -> Inputs:
    longest = max(lengths)
    blocks = torch.full((len(canvases), longest), -1)
    copies = torch.full((len(canvases), longest), -1)
    for i, (state, length) in enumerate(zip(canvases, lengths, strict=True)):
        positions = torch.arange(length)
        blocks[i, :length] = positions // state.block if state.block != FULL else 0
        copies[i, :length] = 0
    tokens = [state.tokens[:length] for state, length in zip(canvases, lengths, strict=True)]
    return Inputs(
        tokens=torch.tensor([token for part in tokens for token in part]),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        rows=(copies.flatten() >= 0).nonzero()[:, 0],
        allowed=visible(blocks, copies)[:, None],
    )
