"""Several drafts in one pass a position: each pass reads the sum of what all of them end with.

The drafts of a lane are a beam. Their last tokens' embeddings, weighted by how probable the drafts
are, make one input, and the logits that follow it are everybody's; what tells the drafts apart is
how often each of the best tokens has followed the end of a draft in earlier texts of the namespace.

Law: one draft without n-grams is what the second model writes greedily; weights sum to 1.
Source: Shen et al. 2024, Superposed Decoding, arXiv:2405.18400, section 3; its code for the order
of things: the best tokens are taken and made to sum to 1 before the n-grams have a say, and a draft
that no n-gram knows loses UNKNOWN. Departs where counts are kept: in the namespace's suffixes, in
which a run at the end of a text is followed by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.drafter import Draft
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.draft_model.runner import DraftJob, DraftModelRunner
from plait.decoders.speculative.stores.suffixes import SuffixIndex, suffix_index
from plait.decoders.speculative.tree import ROOT, DraftTree
from plait.kernels.row_stats import row_logprobs

N_GRAM_WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)  # of what follows runs of 1, 2, ... tokens
UNSEEN_PENALTY = 200.0  # nats that a draft loses where no n-gram knows any of the best tokens


@dataclass(frozen=True, slots=True)
class SuperpositionConfig:
    """How drafts are told apart."""

    drafts: int
    alpha: float  # weight of the n-grams
    temperature: float  # of the model's law
    top: int  # tokens of it that are looked at


@dataclass(frozen=True, slots=True)
class SuperposedHypothesis:
    """One draft."""

    token_ids: tuple[int, ...] = ()
    acceptance_probs: tuple[float, ...] = ()
    score: float = 0.0  # log-probability under the mixture


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The best tokens of a row."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]  # under the law at the mixture's temperature, of these tokens alone
    acceptance_probs: Sequence[float]  # under the model's own law


@dataclass(slots=True)
class SuperposedBeam:
    """The drafts of one lane."""

    job: DraftJob
    grams: SuffixIndex | None
    alive: list[SuperposedHypothesis] = field(default_factory=lambda: [SuperposedHypothesis()])
    ended: list[SuperposedHypothesis] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether another position is wanted."""
        return bool(self.alive) and len(self.alive[0].token_ids) < self.job.max_tokens

    def grow(self, best: TopTokens, mixture: SuperpositionConfig) -> None:
        """Let every draft go on with each of the best tokens, and keep the best drafts."""
        k, stops = mixture.drafts, self.job.sampling.stop_token_ids
        offered = [
            SuperposedHypothesis(
                (*path.token_ids, token),
                (*path.acceptance_probs, acceptance_prob),
                path.score + gain,
            )
            for path in self.alive
            for token, acceptance_prob, gain in zip(
                best.token_ids, best.acceptance_probs, self._gains(path, best, mixture), strict=True
            )
            if gain > -math.inf
        ]
        offered = sorted(offered, key=lambda path: -path.score)[: 2 * k]
        ended = [path for path in offered if path.token_ids[-1] in stops]
        self.ended = sorted([*self.ended, *ended], key=lambda path: -path.score)[:k]
        self.alive = [path for path in offered if path.token_ids[-1] not in stops][:k]

    def weights(self, size: int) -> tuple[list[int], list[float]]:
        """Return the last tokens of the drafts and their weights, filled up to `size`."""
        most = max(path.score for path in self.alive)
        raw = [math.exp(path.score - most) for path in self.alive]
        weights = [weight / sum(raw) for weight in raw]
        missing = size - len(self.alive)
        tokens = [path.token_ids[-1] for path in self.alive]
        return [*tokens, *[tokens[0]] * missing], [*weights, *[0.0] * missing]

    def paths(self) -> list[SuperposedHypothesis]:
        """Return the drafts, those that have ended included, the most probable first."""
        return sorted([*self.alive, *self.ended], key=lambda path: -path.score)

    def tree(self) -> Draft:
        """Return all drafts in one, the best one's tokens first, as far as they are legal."""
        tree = DraftTree()
        for path in self.paths():
            node = ROOT
            legal = _num_legal(self.job.constraint, path.token_ids)
            for token, acceptance_prob in list(
                zip(path.token_ids, path.acceptance_probs, strict=True)
            )[:legal]:
                node = tree.add(node, token, "", acceptance_prob, acceptance_prob)
        return Draft(tree.token_ids, tree.acceptance_probs, tree.parents)

    def _gains(
        self, path: SuperposedHypothesis, best: TopTokens, mixture: SuperpositionConfig
    ) -> list[float]:
        """Return the log-probability that each token adds; -inf: none."""
        alpha = mixture.alpha
        plain = [(1 - alpha) * logprob for logprob in best.logprobs]
        if alpha == 0:
            return plain
        shares = [0.0] * len(plain)
        run = [*self.job.context[-len(N_GRAM_WEIGHTS) :], *path.token_ids][-len(N_GRAM_WEIGHTS) :]
        for length, weight in enumerate(N_GRAM_WEIGHTS[: len(run)], 1):
            found = self.grams and self.grams.shares(run[len(run) - length :], best.token_ids)
            for i, share in enumerate(found or ()):
                shares[i] += weight * share
        if not any(shares):
            return [gain - UNSEEN_PENALTY for gain in plain]
        logs = [math.log(share) if share > 0 else -math.inf for share in shares]
        return [gain + alpha * log for gain, log in zip(plain, logs, strict=True)]


class SuperposedBeamSearch:
    """Draws beams from a second model."""

    def __init__(
        self, runner: DraftModelRunner, mixture: SuperpositionConfig, context: DrafterContext
    ) -> None:
        """Args: chains keep the lanes, and read their texts; the workshop has a draft model."""
        assert context.draft_model is not None, "a worker without a draft model gets nowhere here"
        self._model = context.draft_model
        self._stores = context.stores
        self._naive = context.naive
        self._chains = runner
        self._mixture = mixture

    def draw(self, jobs: Sequence[DraftJob]) -> list[SuperposedBeam | None]:
        """Return a beam for each wish; none while its lane reads, or finds no room."""
        ready, logits = self._chains.read(jobs)
        beams = {id(job): SuperposedBeam(job, self._grams(job)) for job in ready}
        growing = [*beams.values()]
        while growing:
            for beam, best in zip(growing, self._best(logits), strict=True):
                beam.grow(best, self._mixture)
            growing = [beam for beam in growing if beam.is_open]
            if growing:
                logits = self._feed(growing)
        return [beams.get(id(job)) for job in jobs]

    def _grams(self, job: DraftJob) -> SuffixIndex | None:
        """Return what is counted of the namespace's texts; None: nothing."""
        space = self._stores.find(job.sequence.cache.namespace)
        return None if space is None else space.index("suffix", suffix_index)

    def _feed(self, beams: Sequence[SuperposedBeam]) -> Tensor:
        """Let each lane read one input that is all of its drafts at once.

        The lane doesn't hold it as a token, so the next reading forgets it.
        """
        inputs = [(beam.job.sequence.cache, *beam.weights(self._mixture.drafts)) for beam in beams]
        return self._model.superpose(inputs)

    def _best(self, logits: Tensor) -> list[TopTokens]:
        """Return the best tokens of each row; of equals the lower ones."""
        top = min(self._mixture.top, logits.shape[1])
        chosen = logits.new_zeros(len(logits), dtype=torch.int64)  # nobody asks about one
        found = row_logprobs(logits, chosen, top, naive=self._naive)
        tempered = (found.top / self._mixture.temperature).log_softmax(dim=1)
        columns = (found.top_ids.tolist(), tempered.tolist(), found.top.exp().tolist())
        return [TopTokens(*row) for row in zip(*columns, strict=True)]


def _num_legal(constraint: Constraint | None, token_ids: Sequence[int]) -> int:
    """Return how many tokens a constraint allows; it stands afterwards where it stood."""
    if constraint is None:
        return len(token_ids)
    legal = 0
    for token in token_ids:
        if not constraint.accept_token(token):
            break
        legal += 1
    constraint.rollback(legal)
    return legal
