"""What a text is worth: the contract of every scorer. No torch.

A search asks for scores of its members' texts (`Score`) and waits for them. Scorers see text, run
on threads of their own, and get the texts of several requests at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import Field

from plait.decoders.contract.registry import Options


class ScorerOptions(Options):
    """Options that every scorer has."""

    weight: float = Field(
        default=1.0, ge=-1e6, le=1e6, description="by which the score counts in the sum of all"
    )


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text to be scored."""

    prompt: str  # with its special tokens
    text: str  # the continuation, as a client sees it; without a character that is not whole yet
    is_complete: bool  # whether it has ended
    num_scored: int = 0  # characters at its beginning that the request's scorers have seen before


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service of the operator's that scores texts."""

    url: str
    timeout_s: float  # of one call


# Returns how many bytes of a text begin a text of some form, and whether all of it is one.
CheckForm = Callable[[bytes], tuple[int, bool]]


@dataclass(frozen=True, slots=True)
class ScorerContext:
    """What a worker has for its scorers."""

    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)  # by the operator's names
    check_form: CheckForm | None = None  # of the form that the scorer's options have, compiled


class ScorerError(RuntimeError):
    """A scorer gives no scores: the requests that wait for them can't go on."""


class TextScorer(Protocol):
    """What is a text worth?

    Called on one thread at a time. Law: a text's score depends on nothing but prompt, text and
    is_complete. One that can go on from an earlier text finds that by its first num_scored
    characters, and must do without if it has forgotten it.
    """

    def score(self, texts: Sequence[ScoredText]) -> Sequence[float]:
        """Return a finite number for each text; more is better.

        Raises:
            ScorerError: it can't.
        """
