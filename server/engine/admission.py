"""Validates requests; loads constraints asynchronously."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from plait.decoders.constrained.checked import CheckedConstraint, SpelledTokens
from plait.decoders.contract.check import Check
from plait.decoders.contract.constraint import Constraint, is_exact
from plait.decoders.contract.decoder import Decoder, DecodeRequest, SearchNeeds
from plait.decoders.contract.isolation import FAILED, attempt
from plait.decoders.contract.registry import MethodError, from_spec
from plait.decoders.contract.text import NoiseKey, Text
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.group.group import Group, SearchContext, begin_group
from plait.server.engine.kv.block_table import BLOCK_SIZE, BlockTable
from plait.server.engine.kv.prefix_index import hash_span, root_hash
from plait.server.engine.sequence import Sequence
from plait.server.engine.step.reports import log_fault
from plait.server.errors import BadRequest, ContextTooLong, ServerError
from plait.server.wire.messages import CompiledConstraint, Failed, GenerateRequest

POLL_S = 0.05  # how long an idle engine waits for a constraint before it looks at its commands
LoadConstraint = Callable[[CompiledConstraint], Constraint]
ChooseDecoder = Callable[[GenerateRequest], Decoder[Any]]


@dataclass(frozen=True, slots=True)
class EngineCapacity:
    """What one engine can hold."""

    max_model_len: int  # tokens of one sequence; fits the KV cache
    vocab_size: int
    fingerprint: str  # of the weights: the prefix cache's root


class Admission:
    """Turns requests into sequences that are ready to run."""

    def __init__(
        self,
        capacity: EngineCapacity,
        choose_decoder: ChooseDecoder,
        load_constraint: LoadConstraint,
        searches: SearchContext | None = None,
    ) -> None:
        self._searches = searches or SearchContext()
        self._capacity = capacity
        self._choose_decoder = choose_decoder
        self._load_constraint = load_constraint
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="constraints")
        self._loading: dict[str, tuple[GenerateRequest, Future[Constraint | None]]] = {}
        self._dropped: dict[str, set[int]] = {}  # sequences aborted while their request loads

    @property
    def is_loading(self) -> bool:
        """Whether some request waits for its constraint."""
        return bool(self._loading)

    @property
    def num_loading(self) -> int:
        """Sequences of requests that wait for their constraints."""
        return sum(request.n for request, _ in self._loading.values())

    def add(self, request: GenerateRequest) -> None:
        """Check the request against the engine's size and start to load its constraint."""
        self._check(request)
        decoding = request.decoding
        if request.constraint is None and not decoding.scorers and not decoding.checks:
            future: Future[Constraint | None] = Future()
            future.set_result(None)
        else:
            future = self._loader.submit(self._load, request)
        self._loading[request.request_id] = (request, future)

    def _load(self, request: GenerateRequest) -> Constraint | None:
        """Load what takes time; for the loader thread."""
        if request.decoding.scorers:
            self._searches.load_tokenizer()
        for form in request.scorer_forms.values():
            self._searches.scorers.prepare(form)
        given = request.constraint
        constraint = None if given is None else self._load_constraint(given)
        return self._checked(constraint, request) if request.decoding.checks else constraint

    def _checked(self, constraint: Constraint | None, request: GenerateRequest) -> Constraint:
        """Return the constraint with the request's checks beside it."""
        choices = [from_spec("check", spec) for spec in request.decoding.checks]
        checks: list[Check] = [choice.method.make(choice.options) for choice in choices]
        pieces = self._searches.load_tokenizer().token_bytes
        tokens = SpelledTokens(pieces, frozenset(request.stop_token_ids))
        return CheckedConstraint(checks, tokens, constraint)

    def run_aside(self, work: Callable[[], None]) -> None:
        """Do some work on the loader thread, before constraints that come later."""
        self._loader.submit(work)

    def drop(self, request_id: str, index: int | None) -> None:
        """Forget a request, or one of its sequences, that has not got through the door yet."""
        if index is None:
            entry = self._loading.pop(request_id, None)
            self._dropped.pop(request_id, None)
            if entry is not None:
                entry[1].cancel()
        elif request_id in self._loading:
            self._dropped.setdefault(request_id, set()).add(index)

    def poll(self, *, wait: bool) -> tuple[list[Group], list[Failed]]:
        """Return the groups of the requests that are ready, in order of arrival, and failures.

        wait: with nothing else to do, wait up to POLL_S for the first.
        """
        if wait and self._loading:
            _wait_for_any([future for _, future in self._loading.values()])
        arrived: list[Group] = []
        failed: list[Failed] = []
        for request_id, (request, future) in list(self._loading.items()):
            if not future.done():
                continue
            del self._loading[request_id]
            dropped = self._dropped.pop(request_id, set())
            made = attempt(partial(self._begin, request, future, dropped))
            if isinstance(made, Exception):
                failed.append(_make_failed(request_id, made))
            else:
                arrived.append(made)
        return [group for group in arrived if group.members], failed

    def _begin(
        self,
        request: GenerateRequest,
        constraint: Future[Constraint | None],
        dropped: Collection[int],
    ) -> Group:
        """Return a request's group; raise ServerError if the engine can't run it."""
        base = constraint.result()
        if base is not None and not request.extras.holes:  # those have lengths of their own
            _check_budget(base, request)
        try:
            group = begin_group(request, dropped, self._searches)
            self._add_members(group, base)
        except MethodError as error:
            raise BadRequest(str(error), param=error.param) from error
        members = [*group.members.values()]
        misfit = self._check_diffusion(members[0], base) if members else None
        if misfit is not None:
            for each in members:
                each.decoder.finish(each.state)
            raise misfit
        return group

    def _check(self, request: GenerateRequest) -> None:
        capacity, length = self._capacity, len(request.prompt_token_ids)
        if length == 0:
            raise BadRequest("The prompt has no tokens; give at least one.", param="prompt")
        for param, token_ids in _named_ids(request):
            worst = max(token_ids, default=0)
            if worst >= capacity.vocab_size or min(token_ids, default=0) < 0:
                raise BadRequest(
                    f"{param} has the token id {worst}, outside the model's vocabulary of "
                    f"{capacity.vocab_size}.",
                    param=param,
                )
        limit = capacity.max_model_len
        if length + request.max_tokens > limit:
            raise ContextTooLong(
                f"The prompt has {length} tokens and max_tokens is {request.max_tokens}; together "
                f"they may be at most {limit}. Shorten the prompt or lower max_tokens.",
                param="max_tokens" if length < limit else "prompt",
            )

    def _check_diffusion(
        self, sequence: Sequence, constraint: Constraint | None
    ) -> ServerError | None:
        """Return why the engine can't run what a decoder with canvases has made of a request."""
        block, request = sequence.attention_block_size, sequence.request
        if block == 1:
            return None
        if request.prompt_logprobs is not None:
            return BadRequest("A canvas tells nothing of the prompt's tokens.", param="echo")
        if constraint is not None and not is_exact(constraint):
            return BadRequest(
                "A canvas can't keep items or keys apart that must differ (uniqueItems, undeclared "
                "keys of open objects or in any order): leave that out of the form.",
                param="response_format",
            )
        if block and BLOCK_SIZE % block and block % BLOCK_SIZE:
            return BadRequest(f"A block size divides {BLOCK_SIZE} or is a multiple of it.")
        limit = self._capacity.max_model_len
        if block and -(-(sequence.prompt_length + request.max_tokens) // block) * block > limit:
            return ContextTooLong(
                f"Prompt and max_tokens together fill blocks of {block} and may be at most "
                f"{limit // block * block} tokens. Shorten the prompt or lower max_tokens.",
                param="max_tokens",
            )
        return None

    def _add_members(self, group: Group, base: Constraint | None) -> None:
        """Make the members that a group begins with, but for choices that nobody waits for."""
        request, needs = group.request, group.search.needs
        sampling = _member_sampling(request.sampling, needs)
        decoder = self._choose_decoder(request)
        numbers = sorted(group.open_choices) if group.is_independent else range(group.num_members)
        for number in numbers if group.open_choices else ():
            text = Text(request.prompt_token_ids, NoiseKey(sampling.seed, number))
            start = DecodeRequest(
                text=text,
                sampling=sampling,
                max_tokens=request.max_tokens,
                stop_token_ids=frozenset(request.stop_token_ids),
                constraint=base.fork() if base is not None else None,
                methods=request.decoding.methods,
                extras=request.extras,
                namespace=request.cache_salt,
                search=needs,
            )
            state = decoder.start(start)
            block = decoder.attention_block_size(state)
            group.members[number] = Sequence(
                request,
                text,
                number,
                decoder,
                state,
                self._block_table(request, block),
                block,
                prompt_leader=next(iter(group.members.values()), None),
            )
        if 0 in group.members:
            group.prompt_logprobs = group.members[0].prompt_logprobs

    def _block_table(self, request: GenerateRequest, block: int) -> BlockTable:
        """Return an empty table; equal texts share blocks if all that is hashed here is equal."""
        root = root_hash(self._capacity.fingerprint, request.cache_salt, str(block))
        return BlockTable(root, hash_span(block))


def _member_sampling(sampling: SamplingParams, needs: SearchNeeds) -> SamplingParams:
    """Return the parameters that a search's members are drawn with."""
    if needs.logprobs and sampling.logprobs is None:
        sampling = replace(sampling, logprobs=0)
    return replace(sampling, temperature=0.0) if needs.is_greedy else sampling


def _make_failed(request_id: str, fault: Exception) -> Failed:
    """Return the report of a request that could not begin; what is no ServerError is our fault."""
    if isinstance(fault, ServerError):
        return Failed(request_id, type(fault).__name__, fault.message, fault.param, fault.code)
    log_fault(request_id, fault)
    return Failed(request_id, "Internal", FAILED)


def _check_budget(constraint: Constraint, request: GenerateRequest) -> None:
    """Raise BadRequest if no answer is sure to fit, as things stand behind the prefill."""
    shortest = constraint.min_tokens()
    if shortest > request.max_tokens:
        raise BadRequest(
            f"The shortest answer that the form allows has {shortest} tokens, but max_tokens is "
            f"{request.max_tokens}.",
            param="max_tokens",
            code="constraint_exceeds_max_tokens",
        )


def _named_ids(request: GenerateRequest) -> Iterator[tuple[str, Collection[int]]]:
    """Yield the fields whose token ids must be rows of the model's output.

    A prediction may hold any: a drafter leaves out what the model can not write.
    """
    sampling = request.sampling
    yield "prompt", request.prompt_token_ids
    yield "stop_token_ids", request.stop_token_ids
    yield "allowed_token_ids", sampling.allowed_token_ids
    yield "logit_bias", sampling.logit_bias.keys()
    yield "bad_words", [token for word in sampling.bad_words for token in word]
    yield "logprob_token_ids", sampling.logprob_token_ids
    yield "suffix", request.extras.suffix_token_ids
    yield "continuations", [token for each in request.extras.continuations for token in each]


def _wait_for_any(futures: list[Future[Constraint | None]]) -> None:
    wait(futures, timeout=POLL_S, return_when=FIRST_COMPLETED)
