"""Measures what rounding the inputs of integer weights costs, on a text of this repository.

    python -m benchmarks.rounding [--weights auto] [--tokens 2000] [--paths]

The compiled kernels against the same weights with inputs as they are: the KL divergence of the
distributions of the next token, and the loss. Rounding to other grids can be set in
reference.rounded, with --reference. --paths: how often the kernels of other instruction sets have
another best token, and by how little it is the best one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.drafter_heads.frozen import Reader
from plait.kernels import extension
from plait.kernels.linear import reference
from plait.server.models.catalog import ModelFiles, resolve
from plait.server.prompt.tokenizer import load_tokenizer
from plait.server.settings import WeightMode

TEXT = Path(__file__).resolve().parent.parent / "docs" / "architecture.md"
CHUNK = 500  # tokens of a context


def laws_of(reader: Reader, chunks: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-probabilities [tokens, vocab] of what follows each token of its chunk."""
    logits = [reader.model.logits(reader.read(chunk).hidden) for chunk in chunks]
    return torch.cat(logits).log_softmax(-1)


def near_ties(one: Tensor, other: Tensor) -> str:
    """Say where two laws have other best tokens, and the nats between these in the first."""
    best = one.max(-1).values
    gaps = best - one.gather(1, other.argmax(-1, keepdim=True))[:, 0]
    others = gaps[gaps > 0]
    most = f", {others.max():.4f} nats apart at most" if len(others) else ""
    return f"another best token at {len(others)} of {len(best)}{most}"


def compare_paths(files: ModelFiles, weights: WeightMode, chunks: Sequence[Sequence[int]]) -> None:
    """Print one line for each path: its near ties with the first one."""
    laws: dict[str, Tensor] = {}
    for name in extension.isas():
        reader = Reader(files, weights=weights)
        extension.use_isa(name)  # loading a model takes the fastest ones
        laws[name] = laws_of(reader, chunks)
        print(f"{name}: {near_ties(laws[name], next(iter(laws.values())))}")


def main() -> None:
    """Print one line, or one for each path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument(
        "--reference", action="store_true", help="the oracle instead of the kernels"
    )
    parser.add_argument("--paths", action="store_true", help="of the processor, with each other")
    args = parser.parse_args()
    files = resolve(args.model)
    tokens = load_tokenizer(files).encode(TEXT.read_text(), special=False)[: args.tokens]
    chunks = [tokens[i : i + CHUNK] for i in range(0, len(tokens), CHUNK)]
    if args.paths:
        return compare_paths(files, args.weights, chunks)
    have = laws_of(Reader(files, weights=args.weights, reference=args.reference), chunks)
    reference.rounded = lambda x, mode: x
    want = laws_of(Reader(files, weights=args.weights, reference=True), chunks)
    divergence = (want.exp() * (want - have)).sum(-1)
    following = torch.tensor([*tokens[1:], tokens[0]])[:, None]
    losses = [-laws.gather(1, following).mean().item() for laws in (have, want)]
    others = int((have.argmax(-1) != want.argmax(-1)).sum())
    print(
        f"KL {divergence.mean():.5f} nats a token, {divergence.max():.3f} at most; loss "
        f"{losses[0]:.4f}, unrounded {losses[1]:.4f}; another best token at {others} of {len(have)}"
    )


if __name__ == "__main__":
    main()
