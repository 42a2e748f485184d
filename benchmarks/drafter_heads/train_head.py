"""Train a draft head, EAGLE's or Chimera's, on hidden states of the model's answers.

The loss of a round is the cross-entropy against the model's own distribution over the draft
tokens; rounds further ahead weigh less. The same command goes on where the last run stopped; a step
depends on (seed, step) alone.

    python -m benchmarks.drafter_heads.train_head eagle DATA FEATURES RUN_FOLDER --steps 1500
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.drafter_heads import training
from benchmarks.drafter_heads.data import MODEL
from benchmarks.drafter_heads.features import Answer, load_answers
from benchmarks.drafter_heads.frozen import FrozenRows
from benchmarks.drafter_heads.head import HEADS, Head, soft_loss
from plait.server.models.catalog import resolve

DRAFT_TOKENS = 4096
WINDOW = 64  # true rows that a row sees
ROUNDS = 3
FADE = 0.8
RATE = 8e-4
WARM_UP = 20  # steps
TEXTS = 2  # of a step
CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does."""

    folder: Path
    steps: int
    seed: int = 1
    model: str = MODEL

    def rate(self, step: int) -> float:
        """Return the learning rate: a cosine after a short warm-up."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return RATE * min((step + 1) / WARM_UP, cosine)


class Run:
    """A head in training."""

    def __init__(self, name: str, answers: Sequence[Answer], plan: Plan) -> None:
        self._plan, self._answers = plan, answers
        self._frozen = FrozenRows(resolve(plan.model))
        state = training.saved(plan.folder)
        vocab = self._frozen.spec.vocab
        ids = draft_tokens(answers, vocab) if state is None else state["draft_ids"]
        torch.manual_seed(plan.seed)
        self.head: Head = HEADS[name](self._frozen, ids, WINDOW)
        self._optimiser = torch.optim.AdamW(
            self.head.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.first_step = 0
        if state is not None:
            self.first_step = state["step"]
            self.head.load_state_dict(state["head"])
            self._optimiser.load_state_dict(state["optimiser"])

    def train(self) -> None:
        """Go on to the plan's last step."""
        training.train(
            self._plan.folder, range(self.first_step, self._plan.steps), self._learn, self._state
        )

    def _learn(self, step: int) -> list[float]:
        """Learn from some answers; return the loss of each round."""
        found = []
        for i in range(TEXTS):
            losses = losses_of(self.head, chosen(self._answers, self._plan.seed, step, i))
            torch.autograd.backward((losses * FADE ** torch.arange(ROUNDS)).sum() / TEXTS)
            found.append(losses.detach())
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), CLIP)
        training.descend(self._optimiser, self._plan.rate(step))
        mean: list[float] = torch.stack(found).mean(0).tolist()
        return mean

    def _state(self) -> dict[str, Any]:
        return {
            "draft_ids": self.head.draft_ids,
            "head": self.head.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }


def chosen(answers: Sequence[Answer], seed: int, step: int, place: int) -> Answer:
    """Return an answer of a step: every epoch takes all of them, in an order of its own."""
    epoch, index = divmod(step * TEXTS + place, len(answers))
    return answers[int(np.random.default_rng([seed, epoch]).permutation(len(answers))[index])]


def losses_of(head: Head, answer: Answer) -> Tensor:
    """Return the mean loss of each round, [ROUNDS], in nats."""
    hidden = torch.from_numpy(answer.hidden.astype(np.float32))
    tokens = torch.from_numpy(answer.tokens)
    with torch.no_grad():
        teacher = head.logits(hidden[1:])
    rounds = head.rounds(tokens, hidden[:-1], answer.start, ROUNDS)
    return torch.stack(
        [soft_loss(logits[i:], teacher[i:]).mean() for i, logits in enumerate(rounds)]
    )


def draft_tokens(answers: Sequence[Answer], vocab: int) -> Tensor:
    """Return the ids that a head can draft, rising: those that answers hold, the most frequent.

    What is missing is filled up with the lowest ids, the merges that a tokenizer learnt first.
    """
    counts: Counter[int] = Counter()
    for answer in answers:
        counts.update(answer.tokens[3:].tolist())
    found = dict.fromkeys(token for token, _ in counts.most_common(DRAFT_TOKENS))
    for token in range(vocab):
        if len(found) >= min(DRAFT_TOKENS, vocab):
            break
        found.setdefault(token)
    return torch.tensor(sorted(found))


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=sorted(HEADS))
    parser.add_argument("data", type=Path)
    parser.add_argument("features", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    answers = load_answers(args.data, args.features)
    Run(args.name, answers, Plan(args.folder, args.steps, args.seed)).train()


if __name__ == "__main__":
    main()
