"""What searches remember of their members' tokens, position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from plait.decoders.contract.decoder import Alternative, FinishReason
from plait.decoders.contract.search import Action, Fork, Hold, MemberOutcome, Resume, Score


@dataclass(frozen=True, slots=True)
class Draw:
    """One token of a member; of what it was chosen from, as much as the search has asked for."""

    token_id: int
    logprob: float  # natural log, under the model
    is_stop: bool = False  # it ends the text and is not part of it
    entropy: float = math.nan  # nats; nan: unknown
    alternatives: Sequence[Alternative] = ()

    def is_of(self, alternative: Alternative) -> bool:
        """Tell whether an alternative is what was drawn."""
        return (self.token_id, self.is_stop) == (alternative.token_id, alternative.is_stop)


def list_draws(outcome: MemberOutcome) -> list[Draw]:
    """Return what a member drew in a step, its stop token included.

    An end of the text without a token gives none. Needs SearchNeeds.logprobs and .num_alternatives.
    """
    found = []
    for i, alternatives in enumerate(outcome.alternatives):
        entropy = outcome.entropies[i] if outcome.entropies else math.nan
        if i < len(outcome.emitted):
            logprob = outcome.logprobs[i].logprob
            found.append(Draw(outcome.emitted[i], logprob, False, entropy, alternatives))
            continue
        stop = next((each for each in alternatives if each.is_stop), None)
        if stop is not None and outcome.finish == "stop":
            found.append(Draw(stop.token_id, stop.logprob, True, entropy, alternatives))
    return found


@dataclass(slots=True)
class Branch:
    """A member as a search knows it: its draws from a position of its output on."""

    member: int
    base: int  # the position of draws[0]
    draws: list[Draw] = field(default_factory=list)
    finish: FinishReason | None = None
    is_on_hold: bool = False

    def add(self, outcome: MemberOutcome) -> None:
        """Note what became of the member in a step."""
        self.draws += list_draws(outcome)
        self.finish = outcome.finish

    def forget(self, count: int) -> None:
        """Drop the first draws: the base moves on."""
        self.base += sum(not draw.is_stop for draw in self.draws[:count])
        del self.draws[:count]

    def ask_score(self, count: int) -> Score:
        """Ask what the text is worth up to the first draws, as far as there are so many."""
        num_output = self.base + sum(not draw.is_stop for draw in self.draws[:count])
        is_whole = self.finish is not None and len(self.draws) <= count
        return Score(self.member, num_output, is_whole)

    def wait(self, waits: bool) -> list[Action]:
        """Return what lets the member wait, or go on; nothing if it does, or is complete."""
        if self.finish is not None or waits == self.is_on_hold:
            return []
        self.is_on_hold = waits
        return [Hold(self.member) if waits else Resume(self.member)]


def extend_branch(
    branch: Branch, token: Alternative, next_member: int
) -> tuple[Branch, list[Action]]:
    """Return a branch that has an alternative as its draws[0]: the branch itself, or a fork.

    A fork goes on from there, unless the alternative ends the text.

    Args:
        branch: has drawn at least one token.
        token: one of draws[0].alternatives.
        next_member: the number of the fork, if there is one.
    """
    if branch.draws[0].is_of(token):
        return branch, []
    ids = [] if token.is_stop else [token.token_id]
    stop_token = token.token_id if token.is_stop else None
    logprobs = [token.logprob] * len(ids)
    fork = Fork(branch.member, branch.base, ids, logprobs, token.finish, stop_token)
    first = Draw(token.token_id, token.logprob, token.is_stop)
    return Branch(next_member, branch.base, [first], token.finish), [fork]
