"""A user's own condition on an answer's text: the contract of every check. No torch.

A package adds checks through the registry (kind "check"); a request names them as `decoding.check`.
"""

from __future__ import annotations

from typing import Literal, Protocol

# "dead": no text that begins so will do; "alive": one may; "complete": this one does.
TextVerdict = Literal["dead", "alive", "complete"]


class Check(Protocol):
    """Judges the text of one sequence as it grows.

    Law: the verdict depends on the text alone, and behind a dead text all texts are dead. Beyond
    that, the earlier a text is called dead, the less is tried in vain.
    """

    def verdict(self, text: str) -> TextVerdict:
        """Return the verdict on the output so far; a character that is not whole yet is left out.

        Called for each token that is tried, on the engine's thread: milliseconds delay everybody.
        """
