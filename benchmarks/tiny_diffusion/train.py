"""Train the tiny diffusion model. The same command goes on where the last run stopped.

    python -m benchmarks.tiny_diffusion.train RUN_FOLDER --steps 12000 --decay 2500

Each checkpoint holds weights, their running mean and the optimiser's state. The log is one JSON
object per line. A step depends on (seed, step) alone, so a resumed run sees the
same.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.tiny_diffusion import tokenizer as tiny_tokenizer
from benchmarks.tiny_diffusion.data import batch_at
from benchmarks.tiny_diffusion.layout import Batch
from benchmarks.tiny_diffusion.network import Network, tiny_spec
from benchmarks.tiny_diffusion.optimiser import Optimiser

WARM_UP = 200  # steps
MEAN_STEPS = 400  # of the running mean, at most
LOG_EVERY = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does; `steps` and `decay` may grow when it is resumed."""

    steps: int
    decay: int  # the last so many steps fall linearly to a twentieth of the rate
    batch: int = 16
    seed: int = 1
    muon: bool = True
    save_seconds: float = 120.0

    def rate(self, step: int) -> float:
        """Return the schedule's share of the full learning rate."""
        left = (self.steps - step) / max(self.decay, 1)
        return min(1.0, (step + 1) / WARM_UP, 0.05 + 0.95 * max(left, 0.0))


class Run:
    """A network in training, its running mean and its optimiser."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._plan = folder, plan
        self._tokenizer = tiny_tokenizer.build()
        torch.manual_seed(plan.seed)
        self.network = Network(tiny_spec(self._tokenizer.get_vocab_size()))
        self._optimiser = Optimiser(self.network, muon=plan.muon)
        self._weights: list[Tensor] = list(self.network.parameters())
        self._mean = [weight.detach().clone() for weight in self._weights]
        self.step, self.seconds = 0, 0.0
        if self._path.exists():
            self._load(torch.load(self._path))

    def train(self) -> None:
        """Go on to the plan's last step."""
        plan, began, saved = self._plan, time.monotonic() - self.seconds, time.monotonic()
        losses: list[float] = []
        self._log({"plan": repr(plan), "from": self.step})
        while self.step < plan.steps:
            batch = batch_at(self._tokenizer, plan.seed, self.step, plan.batch)
            losses.append(self._learn(batch))
            self.step += 1
            self.seconds = time.monotonic() - began
            if self.step % LOG_EVERY == 0:
                mean = sum(losses) / len(losses)
                self._log({"step": self.step, "seconds": round(self.seconds), "loss": mean})
                losses.clear()
            if time.monotonic() - saved > plan.save_seconds:
                self._save()
                saved = time.monotonic()
        self._save()

    def _learn(self, batch: Batch) -> float:
        loss = weighted_loss(self.network(batch.inputs, batch.wanted), batch)
        torch.autograd.backward(loss)
        self._optimiser.step(self._plan.rate(self.step))
        share = 1 / min(self.step + 1, MEAN_STEPS)
        with torch.no_grad():
            torch._foreach_lerp_(self._mean, self._weights, share)
        return loss.item()

    def _log(self, entry: dict[str, Any]) -> None:
        with (self._folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    @property
    def _path(self) -> Path:
        return self._folder / "checkpoint.pt"

    def _save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "weights": self.network.state_dict(),
            "mean": self._mean,
            "optimiser": self._optimiser.state(),
        }
        part = self._path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self._path)

    def _load(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]
        self.network.load_state_dict(state["weights"])
        self._optimiser.load(state["optimiser"])
        for mean, saved in zip(self._mean, state["mean"], strict=True):
            mean.copy_(saved)


def weighted_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of what was hidden or garbled, padding counting little."""
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    return (losses * batch.weights).sum() / batch.weights.sum()


def averaged(checkpoint: Path) -> tuple[Network, int]:
    """Return the network with its running mean as weights, and the steps it was trained."""
    state = torch.load(checkpoint)
    network = Network(tiny_spec(tiny_tokenizer.build().get_vocab_size()))
    with torch.no_grad():
        for weight, mean in zip(network.parameters(), state["mean"], strict=True):
            weight.copy_(mean)
    return network.requires_grad_(False), state["step"]


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--decay", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--adam", action="store_true", help="AdamW for the matrices too")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan = Plan(args.steps, args.decay, args.batch, args.seed, muon=not args.adam)
    Run(args.folder, plan).train()


if __name__ == "__main__":
    main()
