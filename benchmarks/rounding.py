"""Measures what rounding the inputs of integer weights costs, on a text of this repository.

    python benchmarks/rounding.py [--weights auto] [--tokens 2000]

The compiled kernels against the same weights with inputs as they are: the KL divergence of the
laws of the next token, and the loss. Rounding to other grids can be tried in naive.rounded, with
--naive.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence as Sequences
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from plait.decoders.protocol import Decoder
from plait.decoders.sampling.params import SamplingParams
from plait.kernels.linear import naive
from plait.server.engine.kv_blocks import num_blocks_for
from plait.server.engine.runner import Runner
from plait.server.engine.sequence import Sequence, Slice
from plait.server.models.catalog import resolve
from plait.server.models.load import load_model
from plait.server.models.transformer import Model
from plait.server.pool.messages import GenerateRequest
from plait.server.prompt.tokenizer import load_tokenizer

TEXT = Path(__file__).resolve().parent.parent / "docs" / "architecture.md"
CHUNK = 500  # tokens of a context


def laws_of(model: Model, token_ids: Sequences[int]) -> Tensor:
    """Return the log-probabilities [tokens, vocab] of what follows each token of one context."""
    blocks = num_blocks_for(len(token_ids))
    runner = Runner(model, model.new_kv_cache(blocks), torch.device("cpu"))
    sequence = Sequence(
        GenerateRequest("", list(token_ids), SamplingParams(), 1),
        index=0,
        decoder=cast(Decoder[Any], None),  # nobody decodes
        state=None,
        root=b"",
        tokens=list(token_ids),
        blocks=list(range(blocks)),
    )
    hidden, _ = runner.forward([Slice(sequence, len(token_ids), None)])
    return model.logits(hidden).log_softmax(-1)


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--naive", action="store_true", help="the oracle instead of the kernels")
    args = parser.parse_args()
    files = resolve(args.model)
    tokens = load_tokenizer(files).encode(TEXT.read_text(), special=False)[: args.tokens]
    chunks = [tokens[i : i + CHUNK] for i in range(0, len(tokens), CHUNK)]
    rounded = load_model(files, weights=args.weights, naive=args.naive)
    have = torch.cat([laws_of(rounded, chunk) for chunk in chunks])
    naive.rounded = lambda x, mode: x
    exact = load_model(files, weights=args.weights, naive=True)
    want = torch.cat([laws_of(exact, chunk) for chunk in chunks])
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
