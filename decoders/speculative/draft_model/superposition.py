"""Superposed decoding: several drafts in one pass per position.

The drafts of a sequence are the hypotheses of a beam search. One pass reads one input for all of
them: the sum of the embeddings of their last tokens, weighted by the probabilities of the
hypotheses. All hypotheses share the logits that follow. They are told apart by n-grams: by how
often each of the best tokens has followed the end of a hypothesis in the namespace's texts.

Law: one draft without n-grams is the draft model's greedy output; the weights sum to 1.
Source: Shen et al. 2024, Superposed Decoding, arXiv:2405.18400, section 3, and its code: the
probabilities of the best tokens are normalised before the n-grams are interpolated, and a
hypothesis that no n-gram continues loses UNSEEN_PENALTY. Differs in that n-grams are counted in the
namespace's suffix index, where the last n-gram of a text has no next token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from plait.decoders.contract.constraint import ConstraintView
from plait.decoders.contract.drafter import Draft
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.draft_model.runner import DraftJob, DraftModelRunner
from plait.decoders.speculative.stores.suffixes import SuffixIndex, suffix_index
from plait.decoders.speculative.tree import ROOT, DraftTree

N_GRAM_WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)  # of n-grams with a context of 1, 2, ... tokens
UNSEEN_PENALTY = 200.0  # nats lost where no n-gram has any of the best tokens


@dataclass(frozen=True, slots=True)
class SuperpositionConfig:
    """Parameters of superposed decoding."""

    drafts: int
    alpha: float  # weight of the n-grams
    temperature: float  # of the model's distribution
    top: int  # most probable tokens that are considered


@dataclass(frozen=True, slots=True)
class SuperposedHypothesis:
    """One draft of a beam."""

    token_ids: tuple[int, ...] = ()
    probs: tuple[float, ...] = ()
    score: float = 0.0  # interpolated log-probability

    def extended(self, token: int, prob: float, gain: float) -> SuperposedHypothesis:
        """Return the hypothesis with one more token, its probability and what it adds."""
        return SuperposedHypothesis(
            (*self.token_ids, token), (*self.probs, prob), self.score + gain
        )


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The most probable tokens of a row."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]  # at the configured temperature, normalised over these tokens
    probs: Sequence[float]  # under the model


@dataclass(slots=True)
class SuperposedBeam:
    """The hypotheses of one sequence."""

    job: DraftJob
    n_grams: SuffixIndex | None
    alive: list[SuperposedHypothesis] = field(default_factory=lambda: [SuperposedHypothesis()])
    ended: list[SuperposedHypothesis] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether another position is wanted."""
        return bool(self.alive) and len(self.alive[0].token_ids) < self.job.max_tokens

    def grow(self, best: TopTokens, config: SuperpositionConfig) -> None:
        """Extend every hypothesis by each of the best tokens, and keep the best hypotheses."""
        k, stops = config.drafts, self.job.sampling.stop_token_ids
        offered = []
        for path in self.alive:
            gains = self._gains(path, best, config)
            for token, prob, gain in zip(best.token_ids, best.probs, gains, strict=True):
                if gain > -math.inf:
                    offered.append(path.extended(token, prob, gain))
        offered = sorted(offered, key=lambda path: -path.score)[: 2 * k]
        ended = [path for path in offered if path.token_ids[-1] in stops]
        self.ended = sorted([*self.ended, *ended], key=lambda path: -path.score)[:k]
        self.alive = [path for path in offered if path.token_ids[-1] not in stops][:k]

    def weights(self, size: int) -> tuple[list[int], list[float]]:
        """Return the last token and the weight of each hypothesis, padded to `size`."""
        most = max(path.score for path in self.alive)
        raw = [math.exp(path.score - most) for path in self.alive]
        weights = [weight / sum(raw) for weight in raw]
        missing = size - len(self.alive)
        tokens = [path.token_ids[-1] for path in self.alive]
        return [*tokens, *[tokens[0]] * missing], [*weights, *[0.0] * missing]

    def ranked(self) -> list[SuperposedHypothesis]:
        """Return all hypotheses, ended ones too, by falling score."""
        return sorted([*self.alive, *self.ended], key=lambda path: -path.score)

    def tree(self) -> Draft:
        """Return all hypotheses as one tree, best first, each up to its last legal token."""
        tree = DraftTree()
        for path in self.ranked():
            node = ROOT
            legal = _num_legal(self.job.constraint, path.token_ids)
            for token, prob in list(zip(path.token_ids, path.probs, strict=True))[:legal]:
                node = tree.add(node, token, "", prob, prob)
        return Draft(tree.token_ids, tree.acceptance_probs, tree.parents)

    def _gains(
        self, path: SuperposedHypothesis, best: TopTokens, config: SuperpositionConfig
    ) -> list[float]:
        """Return the score that each token adds; -inf: it can't follow."""
        alpha = config.alpha
        plain = [(1 - alpha) * logprob for logprob in best.logprobs]
        if alpha == 0:
            return plain
        shares = [0.0] * len(plain)
        last = [*self.job.context[-len(N_GRAM_WEIGHTS) :], *path.token_ids][-len(N_GRAM_WEIGHTS) :]
        for length, weight in enumerate(N_GRAM_WEIGHTS[: len(last)], 1):
            found = self.n_grams and self.n_grams.next_token_shares(
                last[len(last) - length :], best.token_ids
            )
            for i, share in enumerate(found or ()):
                shares[i] += weight * share
        if not any(shares):
            return [gain - UNSEEN_PENALTY for gain in plain]
        logs = [math.log(share) if share > 0 else -math.inf for share in shares]
        return [gain + alpha * log for gain, log in zip(plain, logs, strict=True)]


class SuperposedBeamSearch:
    """Runs superposed beams on a draft model."""

    def __init__(
        self, runner: DraftModelRunner, config: SuperpositionConfig, context: DrafterContext
    ) -> None:
        """Args: runner reads the texts of the sequences; context must have a draft model."""
        assert context.draft_model is not None, "a draft model is needed"
        self._model = context.draft_model
        self._stores = context.stores
        self._backend = context.backend
        self._runner = runner
        self._config = config

    def search(self, jobs: Sequence[DraftJob]) -> list[SuperposedBeam | None]:
        """Return a beam for each job; None while the sequence reads its text or has no blocks."""
        ready, logits = self._runner.read(jobs)
        beams = {id(job): SuperposedBeam(job, self._n_grams(job)) for job in ready}
        growing = [*beams.values()]
        while growing:
            for beam, best in zip(growing, self._best(logits), strict=True):
                beam.grow(best, self._config)
            growing = [beam for beam in growing if beam.is_open]
            if growing:
                logits = self._feed(growing)
        return [beams.get(id(job)) for job in jobs]

    def _n_grams(self, job: DraftJob) -> SuffixIndex | None:
        """Return the index of the namespace's texts, if there are any."""
        space = self._stores.find(job.sequence.cache.namespace)
        return None if space is None else space.index("suffix", suffix_index)

    def _feed(self, beams: Sequence[SuperposedBeam]) -> Tensor:
        """Feed one input for all hypotheses of each beam; return the logits [beams, vocab].

        It is no token of the text, so it is dropped when the sequence reads on.
        """
        inputs = [(beam.job.sequence.cache, *beam.weights(self._config.drafts)) for beam in beams]
        return self._model.superpose(inputs)

    def _best(self, logits: Tensor) -> list[TopTokens]:
        """Return the most probable tokens of each row; of equals the lower ids."""
        top = min(self._config.top, logits.shape[1])
        chosen = logits.new_zeros(len(logits), dtype=torch.int64)  # required, unused
        found = self._backend.row_logprobs(logits, chosen, top)
        tempered = (found.top / self._config.temperature).log_softmax(dim=1)
        columns = (found.top_ids.tolist(), tempered.tolist(), found.top.exp().tolist())
        return [TopTokens(*row) for row in zip(*columns, strict=True)]


def _num_legal(constraint: ConstraintView | None, token_ids: Sequence[int]) -> int:
    """Return how many of the tokens, from the first on, a constraint allows."""
    if constraint is None:
        return len(token_ids)
    fork = constraint.fork()
    return sum(1 for _ in takewhile(fork.accept_token, token_ids))
