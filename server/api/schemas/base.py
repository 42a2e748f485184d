"""Types of request fields, and the rules for fields that are refused.

Every field is honoured or refused (law 4): an unknown field is an error; a field of OpenAI's that
is not supported is refused by name, unless its value asks for nothing. Types are strict: "1" is not
a number and true is not 1; but 16.0 is an integer, as in JSON Schema. null means "not given", as at
OpenAI. The operator's limits (n, stop, logprobs, ...) are checked in api/requests/limits.py, token
ids against the vocabulary in api/requests/sampling.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

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


class StrictModel(BaseModel):
    """A model without unknown fields, coercions or infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def exactly_one_of(*names: str, unless: str | None = None) -> ConfigDict:
    """Return the configuration of a model whose JSON schema says that one of these is given.

    The model itself allows all of them to be absent; its reader checks the number.
    unless: a field with which none needs to be given.
    """
    given: list[Any] = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names
    ]
    alone: list[Any] = [{"required": [unless], "not": {"anyOf": given}}] if unless else []
    return ConfigDict(json_schema_extra={"oneOf": [*given, *alone]})


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Annotation of a field that is refused, with the reason.

    null is accepted, and so are the values in `unless`: they ask for what is done anyway.
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


# The bounds of an integer must stand in the same Annotated as INTEGRAL: pydantic writes those of a
# Field() outside of it into the JSON schema as "ge" and "lt", which JSON Schema does not know.
INTEGRAL = BeforeValidator(_integral)
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31), INTEGRAL]
PositiveInt = Annotated[int, Field(ge=1, lt=2**31), INTEGRAL]
Logprobs = Annotated[int, Field(ge=-1, lt=2**31), INTEGRAL]  # -1: as many as the operator allows
# Validation stops at the first bad item: one report for each of millions of items takes minutes.
T = TypeVar("T")
FailFastList = Annotated[list[T], Field(fail_fast=True)]
TokenId = NonNegativeInt
StopString = Annotated[str, StringConstraints(min_length=1)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512)]
ShortString = Annotated[str, StringConstraints(max_length=512)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
TokenBias = Annotated[float, Field(ge=-100, le=100)]
Metadata = Annotated[dict[MetadataKey, ShortString], Field(max_length=16)]
