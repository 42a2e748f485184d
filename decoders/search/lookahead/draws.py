"""What searches remember of their members' tokens, position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from plait.decoders.contract.decoder import Alternative, FinishReason
from plait.decoders.contract.search import Fork, MemberOutcome


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
        del self.draws[:count]
        self.base += count


def fork_at_base(parent: Branch, token: Alternative, member: int) -> tuple[Fork, Branch]:
    """Return a new member that has an alternative in the place of its parent's draws[0].

    It goes on from there, unless the alternative ends the text.
    """
    ids = [] if token.is_stop else [token.token_id]
    stop_token = token.token_id if token.is_stop else None
    logprobs = [token.logprob] * len(ids)
    fork = Fork(parent.member, parent.base, ids, logprobs, token.finish, stop_token)
    first = Draw(token.token_id, token.logprob, token.is_stop)
    return fork, Branch(member, parent.base, [first], token.finish)
