"""The request fields that chat and completions share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, StringConstraints

from plait.server.api.schemas.base import (
    INT64,
    INTEGRAL,
    FailFastList,
    Logprobs,
    ModelName,
    NonNegativeInt,
    PositiveInt,
    ShortString,
    StopString,
    StrictModel,
    TokenBias,
    TokenId,
    Unsupported,
)
from plait.server.api.schemas.response_format import ResponseFormat, StructuredOutputs

_EARLY_STOPPING = "a beam search ends when no beam can overtake what it has found"


class StreamOptions(StrictModel):
    """Options of a stream; only with stream=true."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        None, description="Every chunk has the usage so far; needs include_usage."
    )
    include_obfuscation: bool | None = Field(
        None,
        description="Pad every chunk to a multiple of 32 characters of text, so that sizes on the "
        "wire tell little about the text. Off unless true.",
    )


NamedMethod = str | dict[str, Any]  # an id, or an object with the id as `name` and the options
NamedMethods = Annotated[FailFastList[NamedMethod], Field(min_length=1, max_length=16)]


class CanvasOptions(StrictModel):
    """How a diffusion model attends to and fills its canvas; the model's defaults if absent."""

    attention: Literal["block", "full"] | None = Field(
        None,
        description="Whether a hole sees its block and what is before it, or all of the text.",
    )
    block_size: PositiveInt | None = Field(
        None, description="Tokens that are settled before the next ones begin."
    )


class DecodingOptions(StrictModel):
    """The decoding methods; docs/architecture.md lists them."""

    sampler: NamedMethod | None = None
    drafter: NamedMethod | NamedMethods | None = Field(
        None, description="One method, or several that take turns."
    )
    unmasker: NamedMethod | NamedMethods | None = Field(
        None, description="One method, or one for each part of a step."
    )
    canvas: CanvasOptions | None = None
    search: NamedMethod | None = None
    scorer: NamedMethod | NamedMethods | None = Field(
        None, description="What the search goes by: one method, or several whose scores are added."
    )
    check: NamedMethod | NamedMethods | None = Field(
        None, description="What the text must pass, token by token: checks that are installed."
    )
    trace: bool | None = Field(None, description="Add an object `decoding` to the answer.")


class SamplingFields(StrictModel):
    """How the next token is sampled."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1, description="0: the likeliest token only.")
    top_k: Annotated[int, Field(ge=-1, lt=2**31), INTEGRAL] | None = Field(
        None, description="0 and -1: off."
    )
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: dict[str, TokenBias] | None = Field(None, description="Token id to bias.")
    allowed_token_ids: Annotated[FailFastList[TokenId], Field(min_length=1)] | None = None
    bad_words: FailFastList[StopString] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=2 * INT64), INTEGRAL] | None = Field(
        None,
        description="The same request with the same seed gives the same tokens. One is drawn if "
        "none is given, or -1, and returned as `seed` and in the header x-plait-seed.",
    )


class StoppingFields(StrictModel):
    """When an output is complete."""

    max_tokens: Annotated[int, Field(ge=-1, lt=2**31), INTEGRAL] | None = Field(
        None, description="-1: what the context leaves, the default on chat; completions: 16."
    )
    min_tokens: NonNegativeInt | None = None
    stop: StopString | FailFastList[StopString] | None = None
    stop_token_ids: FailFastList[TokenId] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    deadline_ms: Annotated[int, Field(ge=1, le=24 * 3600 * 1000), INTEGRAL] | None = Field(
        None, description="From arrival to the last token."
    )


class RoutingFields(StrictModel):
    """Model, user, priority and cache namespace of a request."""

    model: ModelName | None = Field(None, description="May be left out if one model is served.")
    user: ShortString | None = Field(None, description="Noted in the access log.")
    priority: Annotated[int, Field(ge=-INT64, lt=INT64), INTEGRAL] | None = Field(
        None, description="Lower runs first."
    )
    cache_salt: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        None, description="Only requests with the same salt and API key share cached prefixes."
    )


class CompatibilityFields(StrictModel):
    """Fields of vLLM and llama.cpp that clients send with their default values."""

    cache_prompt: Annotated[
        Any, Unsupported("--prefix-caching decides, and cache_salt sets prefixes apart", (True,))
    ] = None
    documents: Annotated[Any, Unsupported("put them into a message", ([],))] = None
    early_stopping: Annotated[Any, Unsupported(_EARLY_STOPPING, (False,))] = None
    include_reasoning: Annotated[
        Any, Unsupported("thoughts are not told apart from the text", (True,))
    ] = None
    mirostat: Annotated[Any, Unsupported("top_p, top_k and min_p truncate", (0,))] = None
    spaces_between_special_tokens: Annotated[
        Any, Unsupported("special tokens are written without spaces of the server's own", (True,))
    ] = None
    truncate_prompt_tokens: Annotated[Any, Unsupported("a prompt is never cut")] = None
    typical_p: Annotated[Any, Unsupported("top_p, top_k and min_p truncate", (1, 1.0))] = None


class RequestedSearch(NamedTuple):
    """A search that a field of another server asks for."""

    field: str
    method: Mapping[str, Any]  # as decoding.search would name it


class GenerationRequest(SamplingFields, StoppingFields, RoutingFields, CompatibilityFields):
    """All that chat and completions share."""

    id_prefix: ClassVar[str]  # of the response's id
    prompt_field: ClassVar[str]  # the field that holds what is continued
    default_max_tokens: ClassVar[int | None] = None  # None: what the context leaves

    n: PositiveInt | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    decoding: DecodingOptions | None = None
    use_beam_search: bool | None = Field(
        None, description="Return the n best texts that a beam search of n beams finds."
    )
    length_penalty: float | None = Field(
        None, ge=-10, le=10, description="Exponent of the length. Needs use_beam_search."
    )
    return_token_ids: bool | None = Field(
        None, description="Add `token_ids` of the answers and `prompt_token_ids`."
    )
    skip_special_tokens: bool | None = Field(
        None, description="false: special tokens of an answer are written out. True unless given."
    )
    logprob_token_ids: Annotated[FailFastList[TokenId], Field(min_length=1)] | None = Field(
        None, description="Tokens among the alternatives, whatever their rank. Needs logprobs."
    )
    prompt_logprobs: Logprobs | None = Field(
        None,
        description="Alternatives for each token of the prompt; not with stream. -1: as many "
        "as the server gives.",
    )

    @property
    def max_tokens_field(self) -> str:
        """The field that says how many tokens to generate at most."""
        return "max_tokens"

    @property
    def output_format(self) -> ResponseFormat | None:
        """What the output must look like, beside structured_outputs."""
        return None

    @property
    def predicted_text(self) -> str | None:
        """The output that the client expects."""
        return None

    @property
    def affinity(self) -> str:
        """Requests that share it are sent to the same replica when load allows."""
        return ""

    @property
    def search(self) -> RequestedSearch | None:
        """The search that fields beside `decoding` ask for."""
        if not self.use_beam_search:
            return None
        penalty = 1.0 if self.length_penalty is None else self.length_penalty
        method = {"name": "beam", "beam_width": self.n or 1, "length_penalty": penalty}
        return RequestedSearch("use_beam_search", method)

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Alternatives reported per output token; None for no logprobs at all."""

    @property
    def num_echo_logprobs(self) -> int | None:
        """Alternatives reported per token of an echoed prompt; None for no logprobs of it."""
        return None

    @property
    def stops(self) -> list[str]:
        """The stop strings, as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def counts_usage(self) -> bool:
        """Whether every chunk of a stream says what was used so far."""
        return bool(self.includes_usage and self.stream_options.continuous_usage_stats)  # type: ignore[union-attr]

    @property
    def includes_obfuscation(self) -> bool:
        """Whether the chunks of a stream are padded."""
        return bool(self.stream_options and self.stream_options.include_obfuscation)
