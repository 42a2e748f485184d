"""The sampling parameters of one request, as they travel from the front end to the sampler."""

from __future__ import annotations

from dataclasses import dataclass, field

GREEDY_BELOW = 1e-5  # temperatures: dividing by less would overflow, and says the same


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The distribution of the next token. Every field is range-checked before (server/api/schemas).

    Order of application: logprobs are read first, off the model's own; then allowed_token_ids,
    bad_words, min_tokens, logit_bias, repetition, presence and frequency penalties, temperature,
    min_p, top_k, top_p (truncation), the constraint. temperature 0 is greedy.
    The law before the constraint is the request's distribution p; the legal mass (Draws.log_mass)
    is measured under it. Where truncation leaves no legal token, the constraint is applied first
    and what it allows is truncated: the draw is legal, of probability 0 under p, its log mass -inf.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output, as Hugging Face and vLLM do
    presence_penalty: float = 0.0  # over the output only, as OpenAI does
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()  # empty: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # token id sequences that must not be completed
    min_tokens: int = 0
    seed: int = 0  # unsigned 64 bits; drawn by the front end when the request has none
    logprobs: int | None = None  # number of alternatives to report, 0 = the token's own only
    logprob_token_ids: tuple[int, ...] = ()  # to be reported as well, whatever their rank
