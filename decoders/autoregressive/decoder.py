"""The autoregressive decoder: draws token after token, and verifies drafts on the way.

The verifier is sample and match: every row is drawn from the request's own distribution with its
own noise, and a drafted path is accepted as far as its tokens equal the drawn ones. Row i is drawn
as if the draft before it had been accepted, and counts only if it was; so penalties, constraints
and all else see ordinary sequential sampling.

Law: the text is the one without drafts, token for token (laws 1 and 2), for any drafter. A step
emits the accepted tokens and the one drawn behind them.
Source: docs/speculation.md; shared Gumbel noise (Daliri, Musco and Suresh, 2408.07978).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, inf
from typing import Any, ClassVar

import msgspec
from torch import Tensor

from plait.decoders.autoregressive.acceptance import (
    DrawnRows,
    accept_unverified,
    apply_acceptance_rule,
)
from plait.decoders.autoregressive.bitmask import allow_all_bitmask, fill_bitmask
from plait.decoders.autoregressive.commit import commit_token
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.contract.decoder import (
    Alternative,
    DecodeRequest,
    DraftBudget,
    Drawn,
    Forward,
    Outcome,
    Proposal,
    TokenLogprobs,
)
from plait.decoders.contract.decoding import AutoregressiveMethods, Methods
from plait.decoders.contract.drafter import VerificationResult
from plait.decoders.contract.isolation import attempt, faulty
from plait.decoders.contract.registry import Choice, choose, from_spec
from plait.decoders.contract.sampler import Sampler
from plait.decoders.contract.text import Text
from plait.decoders.sampling.sampler import Draws
from plait.decoders.sampling.state import SamplingState
from plait.decoders.speculative.speculator import Speculator
from plait.decoders.speculative.tree import ROOT, DraftTree
from plait.kernels.backend import KernelBackend
from plait.kernels.dispatch import cpu_backend

PLAIN = Proposal()
NO_DRAFT = DraftTree()


@dataclass(frozen=True, slots=True)
class VerificationRows:
    """One sequence's rows in a pass."""

    state: AutoregressiveState
    tree: DraftTree
    first: int  # row of the logits that follows the text; row first + 1 + i follows node i

    @property
    def num_rows(self) -> int:
        """Rows of the sequence."""
        return 1 + len(self.tree)


@dataclass(frozen=True, slots=True)
class VerifiedRows:
    """All rows of a pass, and what was drawn at each."""

    draws: Draws
    logits: Tensor  # [rows, vocab]
    hidden: Tensor | None  # [rows, hidden]
    entropies: Mapping[int, float]  # of the rows whose searches ask for them, in nats


class AutoregressiveDecoder:
    """Plain and speculative decoding of models that write token after token."""

    name: ClassVar[str] = "autoregressive"

    def __init__(
        self,
        vocab_size: int,
        *,
        backend: KernelBackend | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._backend = backend or cpu_backend()
        self._speculator = speculator
        self._samplers: dict[Choice, Sampler] = {}

    def start(self, request: DecodeRequest) -> AutoregressiveState:
        """Return the state of one new sequence."""
        speculator = self._speculator
        return AutoregressiveState(
            request,
            SamplingState(request.sampling, request.text, request.stop_token_ids),
            self._sampler(request.methods),
            speculation=None if speculator is None else speculator.start(request),
            num_accepted=request.text.num_output,
        )

    def fork(self, state: AutoregressiveState, text: Text) -> AutoregressiveState:
        """Return an independent state for another text, which begins as the state's own does."""
        twin = state.fork(text)
        if self._speculator is not None and state.speculation is not None:
            twin.speculation = self._speculator.fork(state.speculation, twin.request)
        return twin

    def truncate(self, state: AutoregressiveState, text: Text) -> AutoregressiveState:
        """Return the state, adapted to its text, which has been cut."""
        state.truncate()
        if self._speculator is not None and state.speculation is not None:
            state.speculation = self._speculator.truncate(state.speculation, state.request)
        return state

    def reweigh(self, state: AutoregressiveState, log_factors: Mapping[int, float]) -> None:
        """Scale the next draw."""
        state.sampling.log_factors = log_factors

    def attention_block_size(self, state: AutoregressiveState) -> int:
        """Read text causally."""
        return 1

    def propose(
        self, states: Sequence[AutoregressiveState], budget: DraftBudget
    ) -> Sequence[Proposal]:
        """Propose the drafts that pay; nothing else is fed but what is pending."""
        members = [state.speculation for state in states if state.speculation is not None]
        if self._speculator is None or not members:
            return [PLAIN] * len(states)
        limits = [_max_draft_tokens(state) for state in states if state.speculation is not None]
        others = len(states) - len(members)
        trees = iter(self._speculator.propose(members, limits, budget, others))
        drafts = [NO_DRAFT if state.speculation is None else next(trees) for state in states]
        return [tree.proposal() if len(tree) else PLAIN for tree in drafts]

    def accept(self, states: Sequence[AutoregressiveState], forward: Forward) -> Sequence[Outcome]:
        """Draw every row; accept the longest drafted path that matches the draws."""
        outcomes: dict[int, Outcome] = {}
        for sampler, members in _by_sampler(states):
            outcomes |= self._accept(sampler, states, members, forward)
        return [outcomes[i] for i in range(len(states))]

    def preempted(self, state: AutoregressiveState) -> None:
        """Nothing that the decoder remembers depends on the cache."""

    def finish(self, state: AutoregressiveState) -> None:
        """Tell the drafters."""
        if self._speculator is not None and state.speculation is not None:
            self._speculator.finish(state.speculation)

    def report(self, state: AutoregressiveState) -> Mapping[str, Any]:
        """Return drafts by source and, under a constraint, its weight (log_weight: sum of the log
        legal mass; None where it is -inf), its mean per token as a mass, and how often tokens were
        drawn outside of truncation, refused by a check, or replaced to fit the budget."""
        found: dict[str, Any] = {}
        if state.speculation is not None:
            found |= {
                "drafted": state.speculation.drafted,
                "accepted": state.speculation.accepted,
            }
            if state.speculation.rule is not None:
                found["lossy"] = state.speculation.rule.name
        if state.constraint is not None:
            log_weight = state.log_weight
            found |= {
                "log_weight": log_weight if log_weight > -inf else None,  # JSON has no infinity
                "legal_mass": exp(log_weight / max(state.request.text.num_output, 1)),
                "untruncated": state.num_untruncated,
                "checks": state.num_checks,
                "refused": state.num_refused,
                "steered": state.num_steered,
            }
        return found

    def _sampler(self, methods: Methods | None) -> Sampler:
        if methods is None:
            choice = choose({}, "sampler")
        else:
            assert isinstance(methods, AutoregressiveMethods), "methods for a diffusion model"
            choice = from_spec("sampler", methods.sampler)
        assert choice is not None
        if choice not in self._samplers:
            self._samplers[choice] = choice.method.make(choice.options, backend=self._backend)
        return self._samplers[choice]

    def _accept(
        self,
        sampler: Sampler,
        states: Sequence[AutoregressiveState],
        members: Sequence[int],
        forward: Forward,
    ) -> dict[int, Outcome]:
        """Accept for some sequences.

        Where drawing them together fails, each is drawn alone, which gives the same tokens, and
        only those that fail alone are at fault.
        """
        walks, logits, hidden = _pack_rows(states, members, forward)
        draws = attempt(lambda: self._draw(sampler, walks, logits))
        if not isinstance(draws, Exception):
            accepted: dict[int, Outcome] = {}
            verified = VerifiedRows(draws, logits, hidden, self._entropies(walks, logits))
            for i, walk in zip(members, walks, strict=True):
                outcome = attempt(partial(self._walk, walk, verified))
                accepted[i] = faulty(outcome) if isinstance(outcome, Exception) else outcome
            return accepted
        if len(members) == 1:
            return {members[0]: faulty(draws)}
        alone = [self._accept(sampler, states, [i], forward) for i in members]
        return {i: outcome for each in alone for i, outcome in each.items()}

    def _draw(self, sampler: Sampler, walks: Sequence[VerificationRows], logits: Tensor) -> Draws:
        """Draw every row; changes no sequence."""
        ahead = _row_states(walks, self._vocab_size)
        return sampler.sample(logits, ahead, self._bitmask(walks))

    def _entropies(self, walks: Sequence[VerificationRows], logits: Tensor) -> dict[int, float]:
        asking = [walk for walk in walks if walk.state.request.search.entropies]
        rows = [walk.first + row for walk in asking for row in range(walk.num_rows)]
        if not rows:
            return {}
        found = self._backend.row_stats(logits[rows]).entropy.tolist()
        return dict(zip(rows, found, strict=True))

    def _bitmask(self, walks: Sequence[VerificationRows]) -> Tensor | None:
        """Return what each row's constraint allows, had the draft before it come true."""
        if all(walk.state.constraint is None for walk in walks):
            return None
        bitmask = allow_all_bitmask(sum(walk.num_rows for walk in walks), self._vocab_size)
        for walk in walks:
            if walk.state.constraint is not None:
                fill_bitmask(walk.state.constraint, walk.tree, walk.first, bitmask)
        return bitmask

    def _walk(self, walk: VerificationRows, verified: VerifiedRows) -> Outcome:
        """Commit what was drawn at the row behind the text, and behind each accepted token."""
        state, tree, draws, logits = walk.state, walk.tree, verified.draws, verified.logits
        rule = None if state.speculation is None else state.speculation.rule
        if rule is None and not len(tree):
            return self._record(walk, commit_token(state, walk.first, draws, logits), [0], verified)
        emit: list[int] = []
        logprobs: list[TokenLogprobs] = []
        alternatives: list[Sequence[Alternative]] = []
        drawn, log_mass = list[Drawn](), 0.0
        node, accepted_rows, keep = ROOT, [0], list[int]()
        rows = DrawnRows(draws, logits, walk.first)
        while True:
            if rule is not None:
                apply_acceptance_rule(rule, state, tree, node, rows)
            one = commit_token(state, walk.first + accepted_rows[-1], draws, logits)
            emit += one.emit
            logprobs += one.logprobs
            alternatives += one.alternatives
            drawn += one.draws
            log_mass += one.log_mass
            child = tree.child(node, one.emit[0]) if one.emit else None
            if child is not None:
                keep.append(child)
            elif rule is not None and one.emit and one.finish is None:
                child = accept_unverified(rule, state, tree, node, rows)
            if child is not None:
                node = child
                accepted_rows.append(child + 1)
            if child is None or one.finish is not None:
                break
        outcome = Outcome(
            emit,
            keep,
            one.finish,
            one.stop_token,
            logprobs,
            log_mass=log_mass,
            alternatives=alternatives,
            draws=drawn,
        )
        return self._record(walk, outcome, accepted_rows, verified)

    def _record(
        self,
        walk: VerificationRows,
        outcome: Outcome,
        accepted_rows: Sequence[int],
        rows: VerifiedRows,
    ) -> Outcome:
        """Tell the drafters; return the outcome with what else is known of it."""
        state, tree = walk.state, walk.tree
        if rows.entropies and state.request.search.entropies:
            entropies = [rows.entropies[walk.first + row] for row in accepted_rows]
            outcome = msgspec.structs.replace(outcome, entropies=entropies)
        if self._speculator is None or state.speculation is None:
            return outcome
        result = VerificationResult(
            tree.token_ids,
            tree.parents,
            accepted_rows,
            rows.draws.token_ids[walk.first : walk.first + walk.num_rows],
            outcome.emit,
            rows.logits,
            rows.hidden,
            walk.first,
        )
        counts = self._speculator.record(state.speculation, result)
        if not len(tree):
            return outcome
        return msgspec.structs.replace(
            outcome,
            drafted=counts.drafted,
            accepted=counts.accepted,
            predicted=counts.predicted,
        )


def _max_draft_tokens(state: AutoregressiveState) -> int:
    """Return how many draft tokens are of use: the last token of a text is always drawn."""
    limit = state.request.search.max_tokens_per_step
    useful = state.remaining if limit is None else min(state.remaining, limit)
    return 0 if state.is_closing else max(useful - 1, 0)


def _by_sampler(states: Sequence[AutoregressiveState]) -> list[tuple[Sampler, list[int]]]:
    """Return each sampler in use with its sequences."""
    groups: dict[int, tuple[Sampler, list[int]]] = {}
    for i, state in enumerate(states):
        groups.setdefault(id(state.sampler), (state.sampler, []))[1].append(i)
    return list(groups.values())


def _pack_rows(
    states: Sequence[AutoregressiveState], members: Sequence[int], forward: Forward
) -> tuple[list[VerificationRows], Tensor, Tensor | None]:
    """Return the walks of some sequences, and the rows that they own, packed."""
    walks: list[VerificationRows] = []
    rows: list[int] = []
    for i in members:
        state, first, stop = states[i], forward.offsets[i], forward.offsets[i + 1]
        tree = NO_DRAFT if state.speculation is None else state.speculation.tree
        assert stop - first == 1 + len(tree), "a sequence's rows are not those of its draft"
        walks.append(VerificationRows(state, tree, len(rows)))
        rows.extend(range(first, stop))
    if len(members) == len(states):
        return walks, forward.logits, forward.hidden
    return walks, forward.logits[rows], None if forward.hidden is None else forward.hidden[rows]


def _row_states(walks: Sequence[VerificationRows], vocab_size: int) -> list[SamplingState]:
    """Return what sampling knows at each row, had the draft before it come true."""
    found: list[SamplingState] = []
    for walk in walks:
        found.append(walk.state.sampling)
        for token, parent in zip(walk.tree.token_ids, walk.tree.parents, strict=True):
            before = found[walk.first + 1 + parent]
            found.append(before.ahead(token if token < vocab_size else None))
    return found
