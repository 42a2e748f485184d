"""From request fields to SamplingParams: defaults, seeds, token ids within the vocabulary."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from plait.decoders.sampling.params import SamplingParams
from plait.server.api.schemas.generation import GenerationRequest
from plait.server.errors import BadRequest
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import LimitSettings
from plait.server.wire.messages import ModelInfo

SEED_BITS = 53  # of a random seed: every JSON reader holds such a number exactly


def sampling_params(
    request: GenerationRequest,
    tokenizer: Tokenizer,
    vocab_size: int,
    limits: LimitSettings,
) -> SamplingParams:
    """Return the request's sampling parameters, with a random seed if it names none.

    Args:
        request: The request.
        tokenizer: Its model's.
        vocab_size: Token ids below it are the model's (shared_vocab_size).
        limits: The operator's.
    Raises:
        BadRequest: a token id outside of the vocabulary, or bad_words of too many tokens.
    """
    named = request.logprob_token_ids or []
    check_ids(named, vocab_size, param="logprob_token_ids")
    allowed = request.allowed_token_ids or []
    check_ids(allowed, vocab_size, param="allowed_token_ids")
    defaults = tokenizer.sampling
    top_k = defaults.top_k if request.top_k is None else request.top_k
    is_greedy = request.top_p == 0  # the smallest nucleus: the likeliest token
    return SamplingParams(
        temperature=0.0 if is_greedy else _default(request.temperature, defaults.temperature),
        top_k=0 if top_k < 0 else top_k,
        top_p=1.0 if is_greedy else _default(request.top_p, defaults.top_p),
        min_p=_default(request.min_p, defaults.min_p),
        repetition_penalty=_default(request.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_default(request.presence_penalty, 0.0),
        frequency_penalty=_default(request.frequency_penalty, 0.0),
        logit_bias=_logit_bias(request.logit_bias or {}, vocab_size),
        allowed_token_ids=tuple(dict.fromkeys(allowed)),
        bad_words=_bad_words(request.bad_words or [], tokenizer, vocab_size, limits),
        min_tokens=request.min_tokens or 0,
        seed=resolve_seed(request),
        logprobs=resolve_logprobs(request.num_logprobs, limits),
        logprob_token_ids=tuple(named),
    )


def resolve_seed(request: GenerationRequest) -> int:
    """Return the seed as an unsigned 64-bit number; negative ones count from 2^64 down.

    -1 asks for a random one, as in vLLM and llama.cpp.
    """
    if request.seed in (None, -1):
        return secrets.randbits(SEED_BITS)
    return request.seed % 2**64


def resolve_logprobs(num_logprobs: int | None, limits: LimitSettings) -> int | None:
    """Return a number of alternatives, -1 being all that the operator allows."""
    return limits.max_logprobs if num_logprobs == -1 else num_logprobs


def shared_vocab_size(tokenizer: Tokenizer, info: ModelInfo) -> int:
    """Return how many token ids both the tokenizer and the model know.

    They may differ: the output layer may be padded, and a token may have been added to the
    tokenizer without a row in the embedding.
    """
    return min(tokenizer.vocab_size, info.vocab_size)


def check_ids(token_ids: Iterable[int], vocab_size: int, *, param: str) -> None:
    """Raise BadRequest if an id is not in the vocabulary."""
    worst = max(token_ids, default=0)
    if worst >= vocab_size:
        raise BadRequest(
            f"{param}: there is no token {worst}; the vocabulary has {vocab_size}.", param=param
        )


def _default(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _logit_bias(bias: dict[str, float], vocab_size: int) -> dict[int, float]:
    ids: dict[int, float] = {}
    for name, value in bias.items():
        if not (name.isascii() and name.isdecimal() and len(name) <= 10):
            raise BadRequest("The keys of logit_bias must be token ids.", param="logit_bias")
        ids[int(name)] = float(value)
    check_ids(ids, vocab_size, param="logit_bias")
    return ids


def _bad_words(
    words: list[str], tokenizer: Tokenizer, vocab_size: int, limits: LimitSettings
) -> tuple[tuple[int, ...], ...]:
    """Return the token ids of each word at the start of a text and after a space, as vLLM does."""
    fewest = sum(map(tokenizer.min_token_count, words))
    if fewest > limits.max_bad_word_tokens:
        raise _too_many_bad_words(limits)
    spelled: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word, f" {word.lstrip()}"):
            spelled[tuple(tokenizer.encode(text, prefix=False))] = None
    sequences = tuple(sequence for sequence in spelled if sequence)
    if sum(map(len, sequences)) > limits.max_bad_word_tokens:
        raise _too_many_bad_words(limits)
    check_ids((token for word in sequences for token in word), vocab_size, param="bad_words")
    return sequences


def _too_many_bad_words(limits: LimitSettings) -> BadRequest:
    return BadRequest(
        f"bad_words may have at most {limits.max_bad_word_tokens} tokens.", param="bad_words"
    )
