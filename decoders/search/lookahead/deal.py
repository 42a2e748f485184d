"""deal: search for texts that are likely and that a scorer likes, with lookahead.

The token form is the paper's. Of each of `beams` texts the top_k likeliest next tokens are
candidates; each candidate is continued greedily by up to `lookahead` tokens, and

    c(candidate) = log P(text with the candidate | prompt) + reward_weight * h(text with candidate
                   and continuation)

where h is the sum of the request's weighted scorers. The candidates and complete texts with the
highest c are the next texts, of equals the earlier text's, then the likelier token. It ends when
all of them are complete, and returns the n best. The continuation of a candidate that is kept is
not decoded again: it is the continuation of its likeliest next token, but for the last token.

The segment form (`form`) is that of AISteer360, with segments.py: whole beams of `lookahead` tokens
are candidates, and only the scorers rank them.

Laws: with reward_weight 0, or a constant h, it is beam search whose complete texts stay in the
beam; with top_k 1 it is greedy. It draws nothing: temperature and seed have no effect.

Source: DeAL, arXiv:2402.06147, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from plait.decoders.contract.decoder import Alternative, SearchNeeds
from plait.decoders.contract.registry import Method, MethodError, Options
from plait.decoders.contract.search import Action, Drop, MemberOutcome, Ranked, SearchRequest
from plait.decoders.search.lookahead.draws import Branch, extend_branch

MAX_CANDIDATES = 128
OF_FORM = {
    "token": frozenset({"top_k", "reward_weight"}),
    "segment": frozenset({"init_beams", "max_iterations"}),
}


class DealOptions(Options):
    """Options of deal."""

    form: Literal["token", "segment"] = Field(default="token", description="what a candidate is")
    beams: int = Field(default=3, ge=1, le=32, description="texts that are kept, at least n")
    lookahead: int = Field(default=10, ge=0, le=256, description="tokens that are looked ahead")
    top_k: int = Field(default=5, ge=1, le=32, description="token: next tokens tried of each text")
    reward_weight: float = Field(
        default=1.0, ge=0, le=1e6, description="token: weight of the scores beside log P"
    )
    init_beams: int = Field(default=5, ge=1, le=32, description="segment: beams of each text")
    max_iterations: int = Field(
        default=10, ge=1, le=1000, description="segment: budget of segments"
    )

    @model_validator(mode="after")
    def _of_one_form(self) -> DealOptions:
        other = "segment" if self.form == "token" else "token"
        if foreign := sorted(self.model_fields_set & OF_FORM[other]):
            raise ValueError(f"{foreign[0]} belongs to the {other} form")
        per_text = self.top_k if self.form == "token" else self.init_beams
        if self.beams * per_text > MAX_CANDIDATES:
            raise ValueError(f"more than {MAX_CANDIDATES} candidates at once")
        if self.form == "segment" and self.lookahead == 0:
            raise ValueError("a segment has at least one token: raise lookahead")
        return self


@dataclass(slots=True, eq=False)
class Candidate:
    """A text, or a text with a candidate token, which is its branch's draws[0]."""

    branch: Branch
    logprob: float = 0.0  # of the text with the candidate
    is_complete: bool = False  # whether the text ends with the candidate
    score: float | None = None  # h

    def value(self, weight: float) -> float:
        """Return c; without h as long as that is unknown."""
        return self.logprob + weight * (self.score or 0.0)


@dataclass(slots=True)
class DealState:
    """The texts of one request, best first, or their candidates."""

    n: int
    texts: list[Candidate] = field(default_factory=lambda: [Candidate(Branch(0, 0))])
    are_candidates: bool = False
    are_asked: bool = False  # whether the candidates' scores are on their way
    num_members: int = 1
    num_scores: int = 0


class Deal:
    """The token form; see the module's docstring."""

    name: ClassVar[str] = "deal"

    def __init__(self, options: DealOptions) -> None:
        self._beams, self._lookahead = options.beams, options.lookahead
        self._weight = options.reward_weight
        self.needs = SearchNeeds(options.top_k, logprobs=True, is_greedy=True)

    def start(self, request: SearchRequest) -> tuple[DealState, int]:
        """Begin with one text; raise MethodError if there are fewer beams than n."""
        check_width("beams", self._beams, request)
        return DealState(request.n), 1

    def step(self, state: DealState, outcomes: Sequence[MemberOutcome]) -> Sequence[Action]:
        """Make candidates, look ahead, ask for scores, and choose, as far as all are ready."""
        by_member = {text.branch.member: text for text in state.texts}
        for outcome in outcomes:
            if outcome.score is None:
                by_member[outcome.member].branch.add(outcome)
            else:
                by_member[outcome.member].score = outcome.score
        actions: list[Action] = []
        while not all(text.is_complete for text in state.texts) or state.are_candidates:
            if not self._are_ready(state):
                for text in () if state.are_asked else state.texts:
                    actions += text.branch.wait(self._is_ready(state, text))
                return actions
            if not state.are_candidates:
                self._expand(state, actions)
            elif not state.are_asked:
                self._ask(state, actions)
            else:
                self._choose(state, actions)
        return actions

    def rank(self, state: DealState, members: Sequence[int]) -> Sequence[Ranked]:
        """Return the n best texts by c, as far as it is known; the last one again if need be."""
        there = [text for text in state.texts if text.branch.member in members]
        there.sort(key=lambda text: -text.value(self._weight))
        return take([Ranked(t.branch.member, t.value(self._weight)) for t in there], state.n)

    def report(self, state: DealState) -> Mapping[str, Any]:
        """Return how many texts were scored."""
        return {"scores": state.num_scores}

    def _are_ready(self, state: DealState) -> bool:
        return all(self._is_ready(state, text) for text in state.texts)

    def _is_ready(self, state: DealState, text: Candidate) -> bool:
        if state.are_asked:
            return text.score is not None
        if text.is_complete or text.branch.finish is not None:
            return True
        return len(text.branch.draws) > (self._lookahead if state.are_candidates else 0)

    def _expand(self, state: DealState, actions: list[Action]) -> None:
        """Replace each text by its candidates; complete ones stay."""
        found: list[Candidate] = []
        for text in state.texts:
            if text.is_complete:
                found.append(text)
                continue
            own = text.branch
            for token in own.draws[0].alternatives if own.draws else ():
                branch, made = extend_branch(own, token, state.num_members)
                state.num_members += len(made)
                actions += made
                found.append(_candidate(text, branch, token))
            if not any(each.branch is own for each in found):
                if own.draws:  # what its constraint has forced is not among the best
                    actions.append(Drop(own.member))
                else:  # it has ended without a token
                    found.append(Candidate(own, text.logprob, is_complete=True))
        state.texts, state.are_candidates = found, True

    def _ask(self, state: DealState, actions: list[Action]) -> None:
        """Ask for the scores of candidates; those of texts that were complete are known."""
        for text in state.texts:
            if text.score is not None:
                continue
            actions += text.branch.wait(True)
            actions.append(text.branch.ask_score(1 + self._lookahead))
            state.num_scores += 1
        state.are_asked = True

    def _choose(self, state: DealState, actions: list[Action]) -> None:
        """Keep the best candidates, without their scores: those are of their continuations."""
        ordered = sorted(state.texts, key=lambda text: -text.value(self._weight))  # stable
        kept, lost = ordered[: self._beams], ordered[self._beams :]
        actions += [Drop(text.branch.member) for text in lost]
        for text in kept:
            if not text.is_complete:
                text.branch.forget(1)
                text.score = None
        state.texts, state.are_candidates, state.are_asked = kept, False, False


def _candidate(text: Candidate, branch: Branch, token: Alternative) -> Candidate:
    return Candidate(branch, text.logprob + token.logprob, token.finish is not None)


def check_width(option: str, width: int, request: SearchRequest) -> None:
    """Raise MethodError if fewer texts are kept than are to be returned."""
    if width < request.n:
        message = f"{option} is {width}, but n is {request.n}; it can't be below n."
        raise MethodError(message, f"decoding.search.{option}")


def take(ranked: list[Ranked], n: int) -> Sequence[Ranked]:
    """Return n of the ranked members; the last one again if there are fewer."""
    return [*ranked, *ranked[-1:] * n][:n]


METHOD = Method(
    kind="search",
    needs=frozenset({"search"}),
    name="deal",
    summary="Texts that are likely and that scorers like, searched with lookahead.",
    source="DeAL, arXiv:2402.06147, section 3; AISteer360",
    target="plait.decoders.search.lookahead.segments:make",
    options=DealOptions,
    num_sequences="beams",
    is_causal=True,
    is_scored=True,
    unused=frozenset({"presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"}),
    presets={
        "aisteer360": {
            "form": "segment",
            "lookahead": 10,
            "init_beams": 5,
            "beams": 3,
            "max_iterations": 10,
        }
    },
)
