"""The contract between the engine and every decoding method: propose, forward, accept.

A sequence's committed tokens are its prompt and what was emitted. Those whose keys and values are
not in the cache yet are *pending*; the engine feeds them by itself, in chunks when they are many.
When the last pending token fits into a step, the decoder may propose rows that follow it. Law
(checked for every decoder): cached tokens == committed tokens - pending tokens, after every accept.

Source: docs/architecture.md, section "The contract". No torch at import time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import msgspec

from plait.decoders.contract.decoding import NO_EXTRAS, Methods, PromptExtras

if TYPE_CHECKING:
    from torch import Tensor

    from plait.decoders.contract.constraint import Constraint
    from plait.decoders.contract.text import Text
    from plait.decoders.sampling.params import SamplingParams

# Why a text has ended; decoders say "stop", "length" or "dead_end" (its constraint refuses whatever
# may follow), the others are the server's.
FinishReason = Literal["stop", "length", "dead_end", "abort", "deadline", "error"]
State = TypeVar("State")


class SequenceError(RuntimeError):
    """Ends one request; the message is for its client; other requests go on."""

    is_client_error: ClassVar[bool] = False  # what must be changed is the request


class AttentionMode(IntEnum):
    """Who sees whom among the proposed rows; all of them see the cache and the pending rows."""

    CAUSAL = 0  # a row sees the rows before it
    TREE = 1  # a row sees its ancestors
    FULL = 2  # all rows see all rows
    BRANCHES = 3  # a row sees the rows of its own branch, whole
    SHADOW = 4  # first half: sees itself whole; row i of the second: the first without its i, and i
    CONTEXT = 5  # rows are refreshed in place: each sees the first `length` positions as they stand


@dataclass(frozen=True, slots=True)
class Proposal:
    """Rows fed after the pending tokens of one sequence; none of them for plain decoding.

    With an attention block size other than 1, committed tokens may be among the proposed ones:
    those that the engine leaves uncomputed, because they fill no block or there are no blocks.
    """

    token_ids: Sequence[int] = ()
    attend: AttentionMode = AttentionMode.CAUSAL
    # TREE: index of each row's parent row, -1 = last pending; BRANCHES: number of the row's branch
    parents: Sequence[int] | None = None
    positions: Sequence[int] | None = None  # where each row stands in the text, whose first token
    # is 0; None: one after the other, in a tree by depth. CONTEXT: also where its keys and values
    # are written
    length: int = 0  # CONTEXT: positions seen by every row, cached earlier or fed now
    read: Sequence[int] | None = None  # rows whose logits are due, rising; -1: the last pending row


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities under the model, before any parameter or constraint.

    It travels to the front end as it is.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


class PredictionResult(msgspec.Struct, frozen=True, array_like=True):
    """What became of the tokens that a step has drafted from the request's prediction.

    It travels to the front end as it is. Positions are indices of the emitted tokens.
    """

    accepted: list[int]  # positions of accepted tokens
    rejected: list[tuple[int, int]]  # position of the token emitted instead, number rejected


class ContinuationScores(msgspec.Struct, frozen=True, array_like=True):
    """What a model makes of the texts that PromptExtras.continuations names.

    It travels to the front end as it is.
    """

    logprobs: list[float]  # of each continuation given the prompt: natural log, summed over tokens
    hidden: bytes = b""  # if wanted: what the logits behind the prompt are made of, as float32


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that the request allows at a position: constraint, bans and budget are applied."""

    token_id: int
    logprob: float  # natural log, under the model, as in TokenLogprobs
    finish: FinishReason | None = None  # why the text would end with this token, if it would
    is_stop: bool = False  # a stop token: it ends the text and is not part of it


class Drawn(msgspec.Struct, frozen=True):
    """What a search is told of one draw.

    The base law is the request's distribution, truncated and normalised, before the constraint and
    a search's own factors. What is taken back was drawn first, in this order: a check of the
    constraint refuses it, or the text could not end within its budget.
    """

    token_id: int | None  # that follows, or the stop token that ends the text; None: none does
    base_logprob: float  # its log-probability under the base law; -inf where there is no token
    log_mass: float  # as in sampling.sampler.Draws; what is taken back counts as legal there
    taken_back: Sequence[tuple[int, float]] = ()  # with their log-probabilities under the base law
    is_forced: bool = False  # the token was not drawn: the text is being brought to its end


@dataclass(frozen=True, slots=True)
class SearchNeeds:
    """What a search (decoders/contract/search.py) needs from decoders and the engine, and may use.

    When a budget is spent, the search ranks what there is; texts that go on end with "length".
    """

    num_alternatives: int = 0  # to be told of each drawn token
    logprobs: bool = False  # of each emitted token, whether or not the request asks for them
    entropies: bool = False  # of the model's own distribution at each drawn token
    pieces: bool = False  # of text: the bytes of each emitted token
    is_greedy: bool = False  # members draw the likeliest legal token, whatever the temperature
    draws: bool = False  # to be told of each draw: Drawn. Costs a pass over the row's scores
    max_tokens_per_step: int | None = None  # 1: no drafts
    is_synchronous: bool = False  # all members take one step, then the search acts
    has_fixed_choices: bool = False  # member i is choice i and streams at once; there is no action
    max_members: int = 256  # budget: members at once
    max_total_tokens: int | None = None  # budget: tokens that all members emit
    max_ms: int | None = None  # budget: milliseconds since the request was admitted


class Outcome(msgspec.Struct, frozen=True):
    """What one sequence makes of its logits.

    A struct and no dataclass, since one is made for each token: a tenth of the time. Copies that
    differ are made by msgspec.structs.replace.
    """

    emit: Sequence[int] = ()  # token ids committed, in order
    keep: Sequence[int] = ()  # proposed rows, in text order, whose keys and values stay cached
    finish: FinishReason | None = None
    stop_token: int | None = None  # the token that ended the text, when one did; not emitted
    logprobs: Sequence[TokenLogprobs] = ()  # one per emitted token, or none
    fault: str = ""  # not empty: the request can't go on, and nobody else is to suffer for it
    cause: Exception | None = None  # of the fault, when it is the server's: for the log
    is_client_error: bool = False  # the fault is the request's: what it asks for contradicts itself
    drafted: Mapping[str, int] = {}  # draft rows fed, by drafter
    accepted: Mapping[str, int] = {}  # accepted draft tokens, by drafter
    predicted: PredictionResult | None = None  # when rows were drafted from a prediction
    log_mass: float = 0.0  # sum over the drawn tokens: log of the mass that the constraint allows
    alternatives: Sequence[Sequence[Alternative]] = ()  # to each drawn token, best first, if needed
    entropies: Sequence[float] = ()  # nats, at each drawn token, if needed
    draws: Sequence[Drawn] = ()  # if needed
    scores: ContinuationScores | None = None  # of a request for these; it emits nothing


@dataclass(frozen=True, slots=True)
class Forward:
    """What the model returned for several sequences, packed.

    Sequence i owns logits[offsets[i]:offsets[i + 1]]: the row that follows its last pending token
    (absent when nothing was pending), then one row per proposed token; or just the rows that its
    proposal reads. A diffusion model never gives its mask token a finite logit.
    """

    logits: Tensor  # [rows, vocab] float32; not to be modified
    offsets: Sequence[int]  # [sequences + 1]
    hidden: Tensor | None = None  # [rows, hidden] float32: what the logits were made of


@dataclass(frozen=True, slots=True)
class DraftBudget:
    """What a step leaves for rows that a decoder can do without, over all its sequences."""

    drafts: int  # rows of the step's budget and of the cache that nobody else needs
    fed: int = 0  # rows that are fed in any case


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """What a decoder gets to know of one sequence of a request."""

    text: Text  # the engine's; it may have output already
    sampling: SamplingParams
    max_tokens: int  # of output
    stop_token_ids: frozenset[int]
    constraint: Constraint | None  # it has accepted the output that the text has
    methods: Methods | None = None  # None: the decoder's defaults
    namespace: str = ""  # whose texts this one may be compared with: key and cache_salt, hashed
    extras: PromptExtras = NO_EXTRAS
    search: SearchNeeds = field(default_factory=SearchNeeds)


class Decoder(Protocol[State]):
    """Runs the sequences of one kind of model: propose, forward, accept.

    Law: the state of a sequence is derived from its text. A state that is cut to n tokens behaves
    as one that was built from the first n tokens; a fork and its origin share nothing that changes.
    (Counts of work done, such as drafted tokens, are not derived: a fork inherits a copy.)
    """

    name: ClassVar[str]

    def start(self, request: DecodeRequest) -> State:
        """Return the state of a sequence with this text.

        Raises:
            MethodError: these weights can't do what the request asks for.
        """

    def fork(self, state: State, text: Text) -> State:
        """Return an independent state for another text, which begins as the state's own does.

        The new text may be shorter than the state's, and may go on with other tokens.
        """

    def truncate(self, state: State, text: Text) -> State:
        """Return the state for the state's own text, which has been cut; `state` is used up."""

    def reweigh(self, state: State, log_factors: Mapping[int, float]) -> None:
        """Scale the next draw's probabilities by token; until then, or until the text is cut.

        Law: the token v is drawn in proportion to p(v) f(v) over the legal v, p being the base law
        (Drawn) and f(v) 1 where log_factors names no other; the draw's log_mass is the log of the
        sum of these.

        Raises:
            SequenceError: the decoder draws no single tokens.
        """

    def attention_block_size(self, state: State) -> int:
        """Return how committed tokens enter the cache; it never changes for a sequence.

        1: one after the other, causally. b > 1: in blocks of b positions, at multiples of b, that
        see each other whole; a rest shorter than b stays uncomputed, and proposals feed it.
        0: never; every proposal feeds all that it wants to see (CONTEXT).
        """

    def propose(self, states: Sequence[State], budget: DraftBudget) -> Sequence[Proposal]:
        """Return the tokens that each sequence feeds after its uncomputed tokens.

        Tokens that a decoder can't do without may exceed the budget.
        """

    def accept(self, states: Sequence[State], forward: Forward) -> Sequence[Outcome]:
        """Decide what each sequence emits and keeps; append what is emitted to its text."""

    def preempted(self, state: State) -> None:
        """Note that the sequence has lost its cache: its committed tokens will be read again."""

    def finish(self, state: State) -> None:
        """Release the sequence's resources: it has ended, or nobody waits for it any more."""

    def report(self, state: State) -> Mapping[str, Any]:
        """Return the sequence's part of the `decoding` object (docs/api.md)."""
