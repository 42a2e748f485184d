"""Train a draft head, EAGLE's or Chimera's, on hidden states of the model's answers.

The loss of a round is the distance from the model's next state (smooth L1) and a tenth of the
cross-entropy against the model's own distribution over the draft tokens, as EAGLE has it; rounds
further ahead weigh less. States are read with noise, as EAGLE's are. The same command goes on where
the last run stopped; a step depends on (seed, step) and the plan alone.

    python -m benchmarks.drafter_heads.train_head eagle DATA FEATURES RUN_FOLDER --steps 1500
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from benchmarks.drafter_heads import training
from benchmarks.drafter_heads.data import MODEL, load
from benchmarks.drafter_heads.features import Answer, load_answers
from benchmarks.drafter_heads.frozen import FrozenRows
from benchmarks.drafter_heads.head import HEADS, Head
from benchmarks.drafter_heads.measure import head_accuracy
from benchmarks.drafter_heads.start import fit_start
from plait.server.models.catalog import resolve

DRAFT_TOKENS = 6144
WINDOW = 64  # true rows that a row sees
ROUNDS = 3
FADE = 0.8
RATE = 1e-3
WARM_UP = 30  # steps
COOL_DOWN = 0.4  # of the steps, at the end
TEXTS = 16  # of a step
NOISE = 0.2  # of the states' own spread is near 2
ENTROPY_SHARE = 0.1
SHORT = 0.85  # of the steps, at the beginning, have a single round, which costs a third
JUDGED = 16  # held-out answers


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does."""

    data: Path
    folder: Path
    steps: int
    seed: int = 1
    model: str = MODEL
    rate: float = RATE

    def rate_at(self, step: int) -> float:
        """Return the learning rate: level between a warm-up and a cool-down, both linear."""
        left = (self.steps - step) / max(COOL_DOWN * self.steps, 1)
        return self.rate * min((step + 1) / WARM_UP, left, 1.0)

    def rounds_at(self, step: int) -> int:
        """Return how many rounds a step unrolls."""
        return 1 if step < SHORT * self.steps else ROUNDS


@dataclass(frozen=True, slots=True)
class Batch:
    """Answers of similar lengths, padded at the end."""

    tokens: Tensor  # [texts, rows + 3]
    hidden: Tensor  # [texts, rows, hidden]
    following: Tensor  # [texts, rows, hidden] the model's, one place on
    start: Tensor  # [texts]
    known: Tensor  # [texts, rows] whether there is such a row


class Run:
    """A head in training."""

    def __init__(
        self, name: str, answers: Sequence[Answer], plan: Plan, held_out: Sequence[Answer] = ()
    ) -> None:
        """Args: held_out are answers that a head is judged by while it learns."""
        self._plan, self._answers, self._held_out = plan, answers, held_out[:JUDGED]
        self._frozen = FrozenRows(resolve(plan.model))
        state = training.saved(plan.folder)
        vocab = self._frozen.spec.vocab
        ids = draft_tokens(plan.data, vocab) if state is None else state["draft_ids"]
        torch.manual_seed(plan.seed)
        self.head: Head = HEADS[name](self._frozen, ids, WINDOW)
        if state is None:
            fit_start(self.head, self._frozen, answers)
        self._optimisers = optimisers_of(self.head, plan.rate)
        self.first_step = 0
        if state is not None:
            self.first_step = state["step"]
            self.head.load_state_dict(state["head"])
            for optimiser, values in zip(self._optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(values)

    def train(self) -> None:
        """Go on to the plan's last step."""
        training.train(
            self._plan.folder,
            range(self.first_step, self._plan.steps),
            self._learn,
            self._state,
            self._judge,
        )

    def _learn(self, step: int) -> list[float]:
        """Learn from some answers; return the loss of each round."""
        batch = batch_of(chosen(self._answers, self._plan.seed, step))
        torch.manual_seed(self._plan.seed * 1_000_003 + step)
        losses, distances = losses_of(self.head, batch, self._plan.rounds_at(step), NOISE)
        weights = FADE ** torch.arange(len(losses))
        torch.autograd.backward(((distances + ENTROPY_SHARE * losses) * weights).sum())
        for optimiser in self._optimisers:
            training.descend(optimiser, self._plan.rate_at(step))
        found: list[float] = losses.tolist()
        return found

    def _judge(self) -> list[float]:
        """Return how often each round is right on held-out answers, greedily."""
        if not self._held_out:
            return []
        greedy, _ = head_accuracy(self.head, self._frozen.embedding, self._held_out, ROUNDS)
        found: list[float] = greedy.round(4).tolist()
        return found

    def _state(self) -> dict[str, Any]:
        return {
            "draft_ids": self.head.draft_ids,
            "head": self.head.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
        }


def chosen(answers: Sequence[Answer], seed: int, step: int) -> list[Answer]:
    """Return the answers of a step: every epoch takes all of them, in an order of its own.

    Answers of a step are neighbours by length, so that little is padded.
    """
    steps = -(-len(answers) // TEXTS)
    epoch, index = divmod(step, steps)
    rng = np.random.default_rng([seed, epoch])
    lengths = np.array([answer.rows for answer in answers])
    order = np.argsort(lengths + rng.random(len(answers)))  # ties broken anew
    at = int(rng.permutation(steps)[index]) * TEXTS
    return [answers[i] for i in order[at : at + TEXTS].tolist()]


def batch_of(answers: Sequence[Answer]) -> Batch:
    """Return answers side by side."""
    hidden = pad_sequence([torch.from_numpy(a.hidden) for a in answers], batch_first=True).float()
    tokens = pad_sequence([torch.from_numpy(a.tokens) for a in answers], batch_first=True)
    rows = torch.tensor([answer.rows - 1 for answer in answers])
    return Batch(
        tokens,
        hidden[:, :-1],
        hidden[:, 1:],
        torch.tensor([answer.start for answer in answers]),
        torch.arange(hidden.shape[1] - 1) < rows[:, None],
    )


def optimisers_of(head: Head, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices and Adam for the rest, whose steps are as large."""
    matrices = [each for each in head.parameters() if each.dim() == 2]
    rest = [each for each in head.parameters() if each.dim() != 2]
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.Adam(rest, lr=rate, betas=(0.9, 0.95), fused=True)]


def losses_of(head: Head, batch: Batch, count: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the mean losses of each of so many rounds.

    Args:
        head: in training.
        batch: of answers.
        count: of rounds.
        noise: spread of what is added to the states that are read.
    Returns:
        [count] cross-entropies in nats, and [count] distances from the model's states.
    """
    with training.fast_products():
        with torch.no_grad():
            expected = head.expected(batch.following)
        hidden = batch.hidden + noise * torch.randn_like(batch.hidden) if noise else batch.hidden
        losses, distances = [], []
        for i, states in enumerate(head.rounds(batch.tokens, hidden, batch.start, count)):
            known = batch.known[:, i:]
            entropy = head.losses(states, expected)[:, i:]
            distance = F.smooth_l1_loss(states, batch.following, reduction="none").mean(-1)[:, i:]
            losses.append((entropy * known).sum() / known.sum())
            distances.append((distance * known).sum() / known.sum())
    return torch.stack(losses), torch.stack(distances)


def draft_tokens(data: Path, vocab: int) -> Tensor:
    """Return the ids that a head can draft, rising: those that answers hold, the most frequent.

    What is missing is filled up with the lowest ids, the merges that a tokenizer learnt first.
    """
    counts: Counter[int] = Counter()
    for text in load(data):
        counts.update(text.tokens[text.prompt :].tolist())
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
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    answers, held_out = (
        load_answers(args.data, args.features, name) for name in ("train", "held-out")
    )
    plan = Plan(args.data, args.folder, args.steps, args.seed, rate=args.rate)
    Run(args.name, answers, plan, held_out).train()


if __name__ == "__main__":
    main()
