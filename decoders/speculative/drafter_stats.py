"""Whether a drafter is worth calling: the time of a call against the tokens that it gains.

An accepted draft token saves the time of one token without drafts (the seconds of a pass, divided
by its sequences); every draft row that is fed costs a part of that. A drafter is called for a
sequence while the tokens that it gains there are worth more than the time of the call. Otherwise it
is called so rarely that calls take PROBE_SHARE of the time of a token, and at least once in
PROBE_INTERVAL steps, to find out whether that has changed.

Law: none; which drafters are called changes no text. Cost: O(1) a step and drafter.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

RATE = 0.1  # weight of a new observation in the moving averages
OUTLIER = 2.0  # a call counts as at most so many times the average
PROBE_INTERVAL = 64
PROBE_SHARE = 0.005


@dataclass(slots=True)
class DrafterStats:
    """Moving averages of one drafter over all sequences of the worker."""

    seconds: float = 0.0  # of a step's calls for one sequence; 0: never called
    tokens: float = 3.0  # gained in a step with a call; optimistic until something is known
    step_seconds: float = 0.0  # in this step
    step_sequences: int = 0  # in this step

    def add_call(self, seconds: float, sequences: int) -> None:
        """Add one call; a step may make several for the same sequences."""
        self.step_seconds += seconds
        self.step_sequences = max(self.step_sequences, sequences)

    def end_step(self) -> None:
        """Update the average with the calls of this step."""
        if self.step_sequences:
            seconds = self.step_seconds / self.step_sequences
            if self.seconds > 0:
                seconds = min(seconds, self.seconds * OUTLIER)
                seconds = self.seconds + RATE * (seconds - self.seconds)
            self.seconds = seconds
        self.step_seconds, self.step_sequences = 0.0, 0


class SequenceDrafterStats:
    """One drafter at one sequence; starts with the averages over all sequences."""

    def __init__(self, stats: DrafterStats) -> None:
        self.stats = stats
        self._tokens = stats.tokens
        self._steps_skipped = 0
        self._is_pending = False  # called, and the pass that verifies the draft is due

    def copy(self) -> SequenceDrafterStats:
        """Return an independent copy."""
        return copy(self)

    def is_worth_calling(self, seconds: float) -> bool:
        """Tell whether to call the drafter in this step.

        seconds: the time of a token without drafts.
        """
        self._steps_skipped += 1
        value = max(self._tokens, self._steps_skipped * PROBE_SHARE) * seconds
        if self.stats.seconds > value and self._steps_skipped < PROBE_INTERVAL:
            return False
        self._steps_skipped = 0
        return True

    def mark_called(self) -> None:
        """Note that the drafter is called in this step."""
        self._is_pending = True

    def add_gain(self, tokens: float) -> None:
        """Update the averages with the tokens gained: accepted ones less the cost of all rows."""
        if not self._is_pending:
            return
        self._is_pending = False
        self._tokens += RATE * (tokens - self._tokens)
        self.stats.tokens += RATE * (tokens - self.stats.tokens)
