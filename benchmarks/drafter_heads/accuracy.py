"""How often guesses are right on held-out texts, as a table by distance and rank.

python -m benchmarks.drafter_heads.accuracy ppd DATA RUN/ppd/checkpoint.pt
python -m benchmarks.drafter_heads.accuracy eagle DATA RUN/eagle/checkpoint.pt --features FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.drafter_heads.data import MODEL, load
from benchmarks.drafter_heads.features import load_answers
from benchmarks.drafter_heads.frozen import FrozenRows, Reader
from benchmarks.drafter_heads.head import HEADS
from benchmarks.drafter_heads.measure import head_accuracy, ppd_accuracy
from benchmarks.drafter_heads.train_head import WINDOW
from plait.server.models.catalog import resolve

ROUNDS = 4


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=("ppd", *sorted(HEADS)))
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--texts", type=int, default=54)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = resolve(MODEL)
    state, frozen = torch.load(args.checkpoint), FrozenRows(files)
    if args.name == "ppd":
        texts = load(args.data, "held-out")[: args.texts]
        tables = ppd_accuracy(Reader(files), frozen, state["embeddings"], texts)
    else:
        head = HEADS[args.name](frozen, state["draft_ids"], WINDOW)
        head.load_state_dict(state["head"])
        answers = load_answers(args.data, args.features, "held-out")[: args.texts]
        tables = head_accuracy(head, frozen.embedding, answers, ROUNDS, sampled=True)
    for kind, table in zip(("T=0", "T=1, shared noise"), tables, strict=True):
        for distance, row in enumerate(table.reshape(len(table), -1)):
            print(f"| {kind} | {distance + 1} | {' | '.join(f'{share:.3f}' for share in row)} |")


if __name__ == "__main__":
    main()
