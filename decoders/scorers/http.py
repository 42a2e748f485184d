"""http: scores from a service of the operator's, for instance a reward model.

The operator names services (`--scorer-url NAME=URL`), a request names one of them: no URL comes
from a request. A call is a POST of

    {"texts": [{"prompt": "...", "text": "...", "is_complete": false, "num_scored": 0}, ...]}

and the answer {"scores": [0.5, ...]}, a number for each text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import finalize

import msgspec
from pydantic import Field

from plait.decoders.contract.registry import Method, MethodError
from plait.decoders.contract.scorer import ScoredText, ScorerContext, ScorerError, ScorerOptions

if TYPE_CHECKING:
    from httpx2 import Client

MAX_TEXTS = 64  # of one call


class HttpOptions(ScorerOptions):
    """Options of http."""

    endpoint: str = Field(max_length=128, description="the operator's name of the service")


class ScoreAnswer(msgspec.Struct, frozen=True):
    """What the service answers."""

    scores: list[float]


class HttpScorer:
    """Calls a service; see the module's docstring. Connections are kept."""

    def __init__(self, options: HttpOptions, context: ScorerContext) -> None:
        """Raise MethodError if the operator has no service of this name."""
        if options.endpoint not in context.endpoints:
            known = ", ".join(sorted(context.endpoints)) or "none"
            raise MethodError(
                f"There is no scorer service {options.endpoint!r}; the operator's are: {known}.",
                "decoding.scorer.endpoint",
            )
        self._name, self._endpoint = options.endpoint, context.endpoints[options.endpoint]
        self._client: Client | None = None

    def score(self, texts: Sequence[ScoredText]) -> Sequence[float]:
        """Return the service's scores, in calls of at most MAX_TEXTS texts."""
        parts = [texts[i : i + MAX_TEXTS] for i in range(0, len(texts), MAX_TEXTS)]
        return [score for part in parts for score in self._call(part)]

    def _call(self, texts: Sequence[ScoredText]) -> list[float]:
        import httpx2  # noqa: PLC0415, a tenth of a second that other requests don't need

        if self._client is None:
            self._client = httpx2.Client(timeout=self._endpoint.timeout_s, trust_env=False)
            finalize(self, self._client.close)
        try:
            answer = self._client.post(
                self._endpoint.url,
                content=msgspec.json.encode({"texts": texts}),
                headers={"content-type": "application/json"},
            ).raise_for_status()
            scores = msgspec.json.decode(answer.content, type=ScoreAnswer).scores
        except (httpx2.HTTPError, msgspec.DecodeError) as error:
            raise ScorerError(f"the scorer service {self._name!r} fails: {error!r}") from error
        if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
            raise ScorerError(
                f"the scorer service {self._name!r} has answered {len(scores)} scores for "
                f"{len(texts)} texts, or numbers that are not finite"
            )
        return scores


METHOD = Method(
    kind="scorer",
    name="http",
    summary="Scores from a service that the operator has named (--scorer-url).",
    source="",
    target="plait.decoders.scorers.http:HttpScorer",
    options=HttpOptions,
)
