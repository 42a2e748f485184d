"""Train the prompt embeddings of PPD on the model's own answers. Run again to go on.

Of every text, ANCHORS places are drawn; the embeddings stand behind each, and embedding k learns
the model's distribution of the token k + 1 places behind the anchor, given all before it. Source:
PPD, arXiv:2405.18628. What differs: the text is read once without gradients and many places hang on
it, rather than one a text; the distribution that is learnt is that of the text as it goes on, which
was sampled for most texts, rather than of a greedy continuation.

    python -m benchmarks.drafter_heads.train_ppd DATA RUN_FOLDER --steps 1500
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.drafter_heads import training
from benchmarks.drafter_heads.data import MODEL, Text, load
from benchmarks.drafter_heads.frozen import FrozenRows, Reader
from plait.server.models.catalog import resolve
from plait.server.prompt.tokenizer import load_tokenizer

PROMPTS = 3  # embeddings
ANCHORS = 64  # of a text
FADE = 0.8  # weight of each further distance
RATE = 1e-2
LONGEST = 384  # tokens of a text
WAIT_SECONDS = 5.0  # for texts that are still being written


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does."""

    data: Path
    folder: Path
    steps: int
    seed: int = 1
    model: str = MODEL
    rate: float = RATE
    start: Path | None = None  # embeddings to begin with

    def rate_at(self, step: int) -> float:
        """Return the learning rate: a cosine without warm-up."""
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Run:
    """The embeddings in training."""

    def __init__(self, plan: Plan) -> None:
        files = resolve(plan.model)
        self._plan = plan
        self._texts: list[Text] = []
        self._reader, self._rows = Reader(files), FrozenRows(files, training.fast_dtype())
        if plan.start is not None:
            first = load_file(plan.start)["embeddings"]
        else:
            tokenizer = load_tokenizer(files)
            spelled = [tokenizer.encode(f"Next {i + 1} word") for i in range(PROMPTS)]
            first = torch.stack([self._rows.embedding[ids].mean(0) for ids in spelled])
        self.embeddings = torch.nn.Parameter(first.clone())
        self._optimiser = torch.optim.Adam([self.embeddings], lr=plan.rate)
        self.first_step = 0
        if (state := training.saved(plan.folder)) is not None:
            self.first_step = state["step"]
            self.embeddings.data.copy_(state["embeddings"])
            self._optimiser.load_state_dict(state["optimiser"])

    def train(self) -> None:
        """Go on to the plan's last step."""
        training.train(
            self._plan.folder, range(self.first_step, self._plan.steps), self._learn, self._state
        )

    def _text(self, step: int) -> Text:
        """Return the text of a step, once it is there."""
        while step >= len(self._texts):
            self._texts = [text for text in load(self._plan.data) if is_long(text)]
            if step >= len(self._texts):
                time.sleep(WAIT_SECONDS)
        return self._texts[step]

    def _learn(self, step: int) -> list[float]:
        """Learn from one text; return the divergence at each distance."""
        text = self._text(step)
        tokens = text.tokens[:LONGEST].tolist()
        reading = self._reader.read(tokens)
        anchors = anchors_of(text, len(tokens), [self._plan.seed, step])
        inputs = self.embeddings.expand(len(anchors), -1, -1)
        hidden = self._rows.forward(inputs, reading, anchors)
        rows = anchors[:, None] + 1 + torch.arange(PROMPTS)
        with torch.no_grad():
            teacher = self._reader.model.logits(reading.hidden[rows.flatten()])
        divergence = divergence_of(teacher, self._rows.logits(hidden))
        weights = FADE ** torch.arange(PROMPTS)
        loss = (divergence * weights).sum() / PROMPTS
        torch.autograd.backward(loss)
        training.descend(self._optimiser, self._plan.rate_at(step))
        found: list[float] = divergence.tolist()
        return found

    def _state(self) -> dict[str, Any]:
        return {
            "embeddings": self.embeddings.detach(),
            "optimiser": self._optimiser.state_dict(),
        }


def is_long(text: Text) -> bool:
    """Tell whether a text has a place for an anchor."""
    return text.prompt + PROMPTS <= min(len(text.tokens), LONGEST)


def anchors_of(text: Text, length: int, seed: list[int]) -> Tensor:
    """Draw places in a text's answer, the prompt's last token included, rising."""
    first, stop = text.prompt - 1, length - PROMPTS
    places = np.arange(first, stop)
    rng = np.random.default_rng(seed)
    drawn = rng.choice(places, size=min(ANCHORS, len(places)), replace=False)
    return torch.from_numpy(np.sort(drawn))


def divergence_of(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(teacher || student) at each distance, [rows], in nats.

    Args:
        teacher: [anchors * rows, vocab] logits.
        student: [anchors, rows, vocab] logits.
    """
    want = teacher.view(student.shape).log_softmax(dim=-1)
    have = student.log_softmax(dim=-1)
    return F.kl_div(have, want, reduction="none", log_target=True).sum(dim=-1).mean(dim=0)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--start", type=Path, help="a ppd.safetensors to train on")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan = Plan(args.data, args.folder, args.steps, args.seed, rate=args.rate, start=args.start)
    Run(plan).train()


if __name__ == "__main__":
    main()
