"""Whether a drafter is worth asking: what an ask costs, against what it brings.

An accepted token saves what a token costs without it: the seconds of the pass, shared by its
sequences; every row that is fed costs some of that. A drafter is asked for a sequence while what it
brings there is worth more than its own time. Where it is not, it is asked so seldom that asks take
SHARE of a token's time, but once in PROBE steps, to see whether that has changed.

Law: none; who is asked changes no text. Cost: O(1) a step and drafter.
"""

from __future__ import annotations

from dataclasses import dataclass

RATE = 0.1  # how fast an account follows what is observed
OUTLIER = 2.0  # an ask counts as at most so many times what was expected
PROBE_INTERVAL = 64
PROBE_SHARE = 0.005


@dataclass(slots=True)
class DrafterStats:
    """One drafter, over all sequences."""

    seconds: float = 0.0  # of one sequence's ask; 0: never asked
    tokens: float = 3.0  # gained an ask; generous before anything is known
    spent: float = 0.0  # in this step
    asked: int = 0  # sequences in this step

    def spend(self, seconds: float, sequences: int) -> None:
        """Note one call; a step may make several for the same sequences."""
        self.spent += seconds
        self.asked = max(self.asked, sequences)

    def close(self) -> None:
        """End the step."""
        if self.asked:
            seconds = self.spent / self.asked
            if self.seconds > 0:
                seconds = min(seconds, self.seconds * OUTLIER)
                seconds = self.seconds + RATE * (seconds - self.seconds)
            self.seconds = seconds
        self.spent, self.asked = 0.0, 0


class SequenceDrafterStats:
    """One drafter at one sequence; begins with what the drafter brings elsewhere."""

    def __init__(self, stats: DrafterStats) -> None:
        self.stats = stats
        self._tokens = stats.tokens
        self._missed = 0  # steps since the last ask
        self._is_open = False  # asked, and the verdict is due

    def pays(self, seconds: float) -> bool:
        """Tell whether to ask in this step, in which a token costs so many seconds."""
        self._missed += 1
        worth = max(self._tokens, self._missed * PROBE_SHARE) * seconds
        if self.stats.seconds > worth and self._missed < PROBE_INTERVAL:
            return False
        self._missed = 0
        return True

    def ask(self) -> None:
        """Note that the drafter is asked."""
        self._is_open = True

    def settle(self, gained: float) -> None:
        """Learn how many tokens came of it, those that its rows cost taken off."""
        if not self._is_open:
            return
        self._is_open = False
        self._tokens += RATE * (gained - self._tokens)
        self.stats.tokens += RATE * (gained - self.stats.tokens)
