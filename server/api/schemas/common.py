"""The request fields that chat and completions share, and the rules for fields that are refused.

Every field is honoured or refused (law 4): an unknown one is an error, one of OpenAI's that isn't
supported yet says so by name, unless its value asks for nothing. Types are strict: "1" is no
number, true is no 1; but 16.0 is a whole number, as JSON Schema has it. null means "not given"
throughout, as it does at OpenAI. Limits that the operator sets (n, stop, logprobs, ...) are
checked in api/jobs/limits.py, ids against the vocabulary in api/jobs/sampling.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
)
from pydantic_core import PydanticCustomError, core_schema

INT64 = 2**63
_BEAMS = "there is no beam search"


class StrictModel(BaseModel):
    """A model without unknown fields, coercions or infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def exactly_one_of(*names: str) -> ConfigDict:
    """Return the configuration of a model whose JSON schema says that one of these is given.

    The model itself only knows that each of them may be absent; who reads it checks.
    """
    given: list[Any] = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names
    ]
    return ConfigDict(json_schema_extra={"oneOf": given})


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Marks a field of OpenAI's that is refused, with the reason why.

    null passes, and so do the values in `unless`: they ask for nothing that isn't done anyway.
    """

    why: str
    unless: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [None, *self.unless], "description": f"Not supported: {self.why}."}

    def _check(self, value: Any) -> Any:
        accepted = (None, *self.unless)
        if any(type(value) is type(other) and value == other for other in accepted):
            return value
        raise PydanticCustomError(
            "unsupported_parameter", "This is not supported: {why}", {"why": self.why}
        )


def _integral(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


# The bounds of a whole number belong beside this mark, within its Annotated: pydantic writes those
# of a Field() outside of it into the JSON schema as "ge" and "lt", which mean nothing there.
INTEGRAL = BeforeValidator(_integral)
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31), INTEGRAL]
PositiveInt = Annotated[int, Field(ge=1, lt=2**31), INTEGRAL]
Logprobs = Annotated[int, Field(ge=-1, lt=2**31), INTEGRAL]  # -1: as many as the operator allows
# A list stops at its first bad item: millions of reports would cost minutes (each item has one).
T = TypeVar("T")
FailFastList = Annotated[list[T], Field(fail_fast=True)]
TokenId = NonNegativeInt
StopString = Annotated[str, StringConstraints(min_length=1)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512)]
ShortString = Annotated[str, StringConstraints(max_length=512)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
TokenBias = Annotated[float, Field(ge=-100, le=100)]
Metadata = Annotated[dict[MetadataKey, ShortString], Field(max_length=16)]


class StreamOptions(StrictModel):
    """How a stream looks; only with stream=true."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        None, description="Every chunk has the usage so far; needs include_usage."
    )
    include_obfuscation: bool | None = Field(
        None,
        description="Pad every chunk to a multiple of 32 characters of text, so that sizes on the "
        "wire tell little about the text. Off unless true.",
    )


class StructuredOutputs(StrictModel):
    """What the answer must match; exactly one of the four (vLLM's names)."""

    model_config = exactly_one_of("json", "regex", "choice", "grammar")

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="A JSON schema.")
    regex: str | None = None
    choice: Annotated[FailFastList[str], Field(min_length=1)] | None = None
    grammar: str | None = Field(None, description="EBNF; the first rule is `root`.")


Method = str | dict[str, Any]  # an id, or an object with the id as `name` and the options
Methods = Annotated[FailFastList[Method], Field(min_length=1, max_length=16)]


class CanvasOptions(StrictModel):
    """How a diffusion model sees its holes; its own way where nothing is said."""

    attention: Literal["block", "full"] | None = Field(
        None,
        description="Whether a hole sees its block and what is before it, or all of the text.",
    )
    block_size: PositiveInt | None = Field(
        None, description="Tokens that are settled before the next ones begin."
    )


class DecodingOptions(StrictModel):
    """How tokens are found; which methods there are is in docs/architecture.md."""

    sampler: Method | None = None
    drafter: Method | Methods | None = Field(
        None, description="One method, or several that take turns."
    )
    unmasker: Method | Methods | None = Field(
        None, description="One method, or one for each part of a step."
    )
    canvas: CanvasOptions | None = None
    search: Method | None = None
    trace: bool | None = Field(None, description="Add an object `decoding` to the answer.")


class SamplingFields(StrictModel):
    """The law of the next token."""

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
    """When an answer is complete."""

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
    """Who asks, and how urgent it is."""

    model: ModelName | None = Field(None, description="May be left out if one model is served.")
    user: ShortString | None = Field(None, description="Noted in the access log.")
    priority: Annotated[int, Field(ge=-INT64, lt=INT64), INTEGRAL] | None = Field(
        None, description="Lower runs first."
    )
    cache_salt: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        None, description="Only requests with the same salt and API key share cached prefixes."
    )


class CompatibilityFields(StrictModel):
    """Fields of vLLM's and llama.cpp's that clients send with their defaults."""

    cache_prompt: Annotated[
        Any, Unsupported("--prefix-caching decides, and cache_salt sets prefixes apart", (True,))
    ] = None
    documents: Annotated[Any, Unsupported("put them into a message", ([],))] = None
    early_stopping: Annotated[Any, Unsupported(_BEAMS, (False,))] = None
    include_reasoning: Annotated[
        Any, Unsupported("thoughts are not told apart from the text", (True,))
    ] = None
    length_penalty: Annotated[Any, Unsupported(_BEAMS, (1, 1.0))] = None
    mirostat: Annotated[Any, Unsupported("top_p, top_k and min_p truncate", (0,))] = None
    spaces_between_special_tokens: Annotated[
        Any, Unsupported("special tokens are written without spaces of the server's own", (True,))
    ] = None
    truncate_prompt_tokens: Annotated[Any, Unsupported("a prompt is never cut")] = None
    typical_p: Annotated[Any, Unsupported("top_p, top_k and min_p truncate", (1, 1.0))] = None
    use_beam_search: Annotated[Any, Unsupported(_BEAMS, (False,))] = None


class GenerationRequest(SamplingFields, StoppingFields, RoutingFields, CompatibilityFields):
    """All that chat and completions share."""

    n: PositiveInt | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    decoding: DecodingOptions | None = None
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
