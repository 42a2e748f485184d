"""keywords: the share of given words that a text contains.

Source: the coverage of CommonGen's concepts, as DeAL (arXiv:2402.06147, section 4.1) scores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, StringConstraints

from plait.decoders.contract.registry import Method
from plait.decoders.contract.scorer import ScoredText, ScorerContext, ScorerOptions

Keyword = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class KeywordsOptions(ScorerOptions):
    """Options of keywords."""

    keywords: tuple[Keyword, ...] = Field(min_length=1, max_length=256, description="to be found")
    whole_words: bool = Field(default=True, description="a keyword within a longer word is none")
    ignore_case: bool = Field(default=True, description="whether case makes no difference")


class Keywords:
    """The share of keywords found, from 0 to 1. Cost: keywords x text."""

    def __init__(self, options: KeywordsOptions, context: ScorerContext) -> None:
        self._whole_words, self._ignore_case = options.whole_words, options.ignore_case
        self._keywords = [self._fold(each) for each in dict.fromkeys(options.keywords)]

    def score(self, texts: Sequence[ScoredText]) -> Sequence[float]:
        """Return the share for each text."""
        return [self._share(self._fold(each.text)) for each in texts]

    def _share(self, text: str) -> float:
        return sum(self._is_in(text, each) for each in self._keywords) / len(self._keywords)

    def _is_in(self, text: str, keyword: str) -> bool:
        start = text.find(keyword)
        while start >= 0:
            stop = start + len(keyword)
            if not self._whole_words or _is_whole(text, start, stop):
                return True
            start = text.find(keyword, start + 1)
        return False

    def _fold(self, text: str) -> str:
        return text.casefold() if self._ignore_case else text


def _is_whole(text: str, start: int, stop: int) -> bool:
    """Tell whether no word goes on at either end of a place in a text."""
    return not (_joins(text[:start][-1:], text[start]) or _joins(text[stop - 1], text[stop:][:1]))


def _joins(left: str, right: str) -> bool:
    return left.isalnum() and right.isalnum()


METHOD = Method(
    kind="scorer",
    name="keywords",
    summary="The share of given words that the text contains.",
    source="DeAL, arXiv:2402.06147, section 4.1",
    target="plait.decoders.scorers.keywords:Keywords",
    options=KeywordsOptions,
)
