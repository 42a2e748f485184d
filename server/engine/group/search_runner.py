"""Carries out what searches decide: it forks, cuts, drops, parks, resumes and returns members.

What all members share can't change any more, so it is streamed to every choice of the request
(law 5); the rest of a choice follows when the search has ranked its members.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from functools import partial
from typing import Any

from plait.decoders.contract.decoder import FinishReason, Outcome, TokenLogprobs
from plait.decoders.contract.scorer import ScoredText, ScorerError
from plait.decoders.contract.search import (
    Action,
    Drop,
    Finish,
    Fork,
    Hold,
    MemberOutcome,
    Park,
    Ranked,
    Resume,
    Reweigh,
    Score,
    Truncate,
)
from plait.server.engine.group.group import Group
from plait.server.engine.group.scoring import PendingScore, ScoringThreads, spell
from plait.server.engine.kv.block_table import BlockTable
from plait.server.engine.scheduler import Scheduler
from plait.server.engine.sequence import Sequence
from plait.server.engine.step.reports import decoding_report
from plait.server.wire.messages import Delta, SearchResult

Release = Callable[[Sequence], None]
NO_SCORES = "A scorer of this request gives no scores; it may do so later."


class SearchError(RuntimeError):
    """A search asks for what can't be done."""


class SearchRunner:
    """Runs the searches of one engine."""

    def __init__(self, scheduler: Scheduler, release: Release) -> None:
        """Args: release ends a sequence: its decoder's state and what the engine keeps of it."""
        self._scheduler = scheduler
        self._release = release
        self._scoring = ScoringThreads()

    @property
    def awaits_scores(self) -> bool:
        """Whether scorers are at work."""
        return self._scoring.is_waiting

    def close(self) -> None:
        """Ask the scorers nothing more."""
        self._scoring.close()

    def record(self, group: Group, sequence: Sequence, outcome: Outcome) -> None:
        """Note what a step has made of a member, for the search to see."""
        if outcome.finish is None and not outcome.emit:
            return
        sequence.finish, sequence.stop_token = outcome.finish, outcome.stop_token
        sequence.logprobs.extend(outcome.logprobs)
        sequence.alternatives = outcome.alternatives[-1] if outcome.alternatives else ()
        sequence.is_held = group.search.needs.is_synchronous
        num_drawn = len(outcome.emit) + (outcome.stop_token is not None)
        group.num_tokens += max(num_drawn, len(outcome.alternatives), len(outcome.draws))
        group.outcomes.append(
            MemberOutcome(
                sequence.index,
                sequence.text.num_output,
                outcome.emit,
                outcome.logprobs,
                outcome.alternatives,
                outcome.log_mass,
                outcome.finish,
                outcome.entropies,
                outcome.draws,
                _pieces(group, outcome),
            )
        )

    def due(self, groups: Sequences[Group]) -> list[tuple[Group, Callable[[], list[Delta]]]]:
        """Return the groups whose searches are to act now, with what they are to do."""
        self.exchange_scores()
        found: list[tuple[Group, Callable[[], list[Delta]]]] = []
        for group in groups:
            if group.has_scores:
                found.append((group, partial(self.deliver, group)))
            elif group.pending and group.spent_budget:
                found.append((group, partial(self.finish, group)))
            elif group.is_due:
                found.append((group, partial(self.decide, group)))
        return found

    def exchange_scores(self, timeout_s: float = 0.0) -> None:
        """Send what has been asked of scorers, and note their answers.

        timeout_s: how long to wait for the first one, if any is to come.
        """
        self._scoring.flush()
        self._scoring.collect(timeout_s)

    def deliver(self, group: Group) -> list[Delta]:
        """Tell the search the scores that it waits for, and let it act.

        Raises:
            ScorerError: there are none.
            SearchError: it asks for what can't be done.
        """
        group.outcomes += _take_scores(group)
        return self.decide(group)

    def decide(self, group: Group) -> list[Delta]:
        """Let the search act on what it has not seen; a group without members has ended.

        Raises:
            SearchError: it asks for what can't be done.
        """
        outcomes, group.outcomes = group.outcomes, []
        is_over = False
        for action in group.search.step(group.state, outcomes):
            is_over |= isinstance(action, Finish)
            self._apply(group, action)
        for sequence in group.members.values():
            sequence.is_held = sequence.is_on_hold
            if sequence.finish is not None:
                self._scheduler.park(sequence)
        if is_over or not (group.running or group.pending) or group.spent_budget:
            return self.finish(group)
        return self._stream(group)

    def finish(self, group: Group, reason: FinishReason = "length") -> list[Delta]:
        """Return the rest of every choice, and end the group.

        reason: why the texts end that are not complete.
        """
        ranked = [*group.search.rank(group.state, list(group.members))][: group.request.n]
        if len(ranked) < group.request.n:
            raise SearchError(f"{group.search.name} has ranked {len(ranked)} members only")
        deltas = [
            self._last_delta(group, choice, place, reason)
            for choice, place in enumerate(ranked)
            if choice in group.open_choices
        ]
        for sequence in list(group.members.values()):
            self.drop(group, sequence)
        return deltas

    def drop(self, group: Group, sequence: Sequence) -> None:
        """Give up a member."""
        self._scheduler.remove(sequence)
        del group.members[sequence.index]
        self._release(sequence)

    def _apply(self, group: Group, action: Action) -> None:
        match action:
            case Fork():
                self._fork(group, action)
            case Truncate(member, num_output):
                self._truncate(group, self._member(group, member), num_output)
            case Drop(member):
                self.drop(group, self._member(group, member))
            case Hold(member):
                self._member(group, member).is_on_hold = True
            case Park(member):
                sequence = self._member(group, member)
                sequence.is_parked = True
                self._scheduler.park(sequence)
            case Resume(member):
                self._resume(self._member(group, member))
            case Reweigh(member, log_factors):
                sequence = self._member(group, member)
                sequence.decoder.reweigh(sequence.state, log_factors)
            case Score():
                pending = _pending_score(group, action, self._member(group, action.member))
                group.pending.append((action, pending))
                self._scoring.ask(pending)
            case Finish():
                pass

    def _resume(self, sequence: Sequence) -> None:
        if not (sequence.is_parked or sequence.is_on_hold):
            raise SearchError(f"member {sequence.index} is neither parked nor on hold")
        if sequence.is_parked and sequence.finish is None:
            self._scheduler.add(sequence)
        sequence.is_parked = sequence.is_on_hold = False

    def _fork(self, group: Group, action: Fork) -> None:
        parent = self._member(group, action.parent)
        self._check_cut(group, parent, action.num_output)
        if len(group.members) >= group.search.needs.max_members:
            raise SearchError(f"{group.search.name} has {len(group.members)} members already")
        text = parent.text.fork(group.num_members)
        text.truncate(text.prompt_length + action.num_output)
        text.extend(action.token_ids)
        child = Sequence(
            parent.request,
            text,
            group.num_members,
            parent.decoder,
            parent.decoder.fork(parent.state, text),
            BlockTable(parent.block_table.root, parent.block_table.hash_span),
            parent.attention_block_size,
            is_started=True,
            forwards=parent.forwards,
            steps=parent.steps[: action.num_output] + [parent.forwards] * len(action.token_ids),
            finish=action.finish,
            stop_token=action.stop_token,
            logprobs=_logprobs(parent, action),
            num_scored=min(parent.num_scored, action.num_output),
        )
        group.num_members += 1
        group.members[child.index] = child
        if child.finish is None:
            self._scheduler.fork(parent, child)

    def _truncate(self, group: Group, sequence: Sequence, num_output: int) -> None:
        self._check_cut(group, sequence, num_output)
        was_complete = sequence.finish is not None
        sequence.text.truncate(sequence.text.prompt_length + num_output)
        sequence.state = sequence.decoder.truncate(sequence.state, sequence.text)
        sequence.finish = sequence.stop_token = None
        del sequence.steps[num_output:], sequence.logprobs[num_output:]
        sequence.num_scored = min(sequence.num_scored, num_output)
        self._scheduler.truncate(sequence)
        if was_complete and not sequence.is_running and not sequence.is_parked:
            self._scheduler.add(sequence)

    def _check_cut(self, group: Group, sequence: Sequence, num_output: int) -> None:
        if not group.num_streamed <= num_output <= sequence.text.num_output:
            raise SearchError(
                f"{group.search.name} cuts member {sequence.index} to {num_output} tokens, of "
                f"{sequence.text.num_output}, {group.num_streamed} of which are streamed"
            )

    def _member(self, group: Group, number: int) -> Sequence:
        if number not in group.members:
            raise SearchError(f"{group.search.name} has no member {number}")
        return group.members[number]

    def _stream(self, group: Group) -> list[Delta]:
        """Return what all members share and no choice has received."""
        first, *others = group.members.values()
        start = group.num_streamed
        streamed = first.text.prompt_length + start  # which all of them share
        shared = len(first.text)
        for other in others:
            shared = min(shared, first.text.num_shared(other.text, streamed))
        if shared == streamed:
            return []
        group.num_streamed += shared - streamed
        piece = slice(start, group.num_streamed)
        return [
            Delta(
                group.request.request_id,
                choice,
                first.text[streamed:shared],
                logprobs=_shown(group, first, piece),
                prompt_logprobs=_prompt_logprobs(group, choice, first, start),
            )
            for choice in sorted(group.open_choices)
        ]

    def _last_delta(self, group: Group, choice: int, place: Ranked, reason: FinishReason) -> Delta:
        sequence = self._member(group, place.member)
        piece = slice(group.num_streamed, None)
        return Delta(
            group.request.request_id,
            choice,
            sequence.text.output[piece],
            logprobs=_shown(group, sequence, piece),
            finish_reason=sequence.finish or reason,
            stop_token=sequence.stop_token,
            prompt_logprobs=_prompt_logprobs(group, choice, sequence, group.num_streamed),
            trace=_trace(group, sequence, place),
            search=SearchResult(place.score, place.log_weight, group.num_members, group.num_tokens),
        )


def _pending_score(group: Group, asked: Score, sequence: Sequence) -> PendingScore:
    """Return what a search wants to know, as its scorers are asked.

    Raises:
        SearchError: there is no scorer, or no such text.
    """
    if not group.scorers or group.tokenizer is None:
        raise SearchError(f"{group.search.name} asks for scores, but there is no scorer")
    output = sequence.text.output
    if not 0 <= asked.num_output <= len(output):
        raise SearchError(f"member {asked.member} has no {asked.num_output} tokens to score")
    known = group.tokenizer.token_bytes
    text = spell(known, output[: asked.num_output], is_complete=asked.is_complete)
    earlier = min(sequence.num_scored, asked.num_output)
    num_scored = len(spell(known, output[:earlier], is_complete=False))
    sequence.num_scored = asked.num_output
    scored = ScoredText(group.prompt, text, asked.is_complete, num_scored)
    return PendingScore(group.request.request_id, group.scorers, scored)


def _take_scores(group: Group) -> list[MemberOutcome]:
    """Return the scores that have come, of the members that are still there."""
    pending, group.pending = group.pending, []
    failed = next((found.error for _, found in pending if found.error is not None), None)
    if failed is not None:
        raise ScorerError(NO_SCORES) from failed
    there = [(asked, found) for asked, found in pending if asked.member in group.members]
    return [
        MemberOutcome(
            asked.member,
            asked.num_output,
            (),
            (),
            (),
            0.0,
            group.members[asked.member].finish,
            score=found.total,
        )
        for asked, found in there
    ]


def _logprobs(parent: Sequence, fork: Fork) -> list[TokenLogprobs]:
    """Return the entries of a fork's tokens: the parent's, then those of the tokens it was given.

    The alternatives of a given token are those of the parent's token in its place. If that was a
    stop token, it has no entry, and they are those that the search saw.
    """
    known = parent.logprobs[: fork.num_output]
    if not fork.logprobs:
        return known
    places, num_top = itertools.count(fork.num_output), parent.request.sampling.logprobs or 0
    for token_id, logprob, at in zip(fork.token_ids, fork.logprobs, places, strict=False):
        seen = tuple((a.token_id, a.logprob) for a in parent.alternatives)
        top = parent.logprobs[at].top if at < len(parent.logprobs) else seen[:num_top]
        known.append(TokenLogprobs(token_id, logprob, top))
    return known


def _shown(group: Group, sequence: Sequence, piece: slice) -> list[TokenLogprobs] | None:
    """Return the entries of some output tokens, if the request asks for them."""
    if group.request.sampling.logprobs is None:
        return None
    return sequence.logprobs[piece] or None


def _prompt_logprobs(
    group: Group, choice: int, sequence: Sequence, start: int
) -> list[TokenLogprobs | None] | None:
    """Return the entries of the prompt with the first delta of the first choice."""
    is_first = choice == 0 and start == 0 and group.request.prompt_logprobs is not None
    return group.prompt_logprobs if is_first else None


def _trace(group: Group, sequence: Sequence, place: Ranked) -> dict[str, Any] | None:
    """Return what is told of a search: all, if asked; that a budget has ended it."""
    found = {**group.search.report(group.state), **place.report}
    if group.spent_budget:
        found["budget"] = group.spent_budget
    if group.request.decoding.trace:
        return {**decoding_report(sequence), **found}
    return {"budget": found["budget"]} if "budget" in found else None


def _pieces(group: Group, outcome: Outcome) -> list[bytes]:
    """Return the bytes of the emitted tokens, if the search looks at them."""
    if not group.search.needs.pieces or group.tokenizer is None:
        return []
    known = group.tokenizer.token_bytes
    return [known[token] if token < len(known) else b"" for token in outcome.emit]
