"""The options of `plait bench decoders`. No torch: the command line reads them before it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_settings import CliPositionalArg, CliSubCommand

from plait.server.options import Count, EngineOptions, Texts, layer, split
from plait.server.settings import EngineSettings

Part = Literal["serving", "json"]
PARTS: tuple[Part, ...] = ("serving", "json")


def _without_empty(value: object) -> object:
    """Return the parts of a comma-separated text; an empty one has none."""
    parts = split(value)
    return [part for part in parts if part != ""] if isinstance(parts, list) else parts


class DecodersOptions(EngineOptions):
    """Compare the ways to decode one diffusion model: accuracy, forward passes, time.

    Every setting stands beside one token per step and the autoregressive run of the same weights.
    A run that was broken off goes on where it stopped.
    """

    model: CliPositionalArg[str] = Field("tiny-diffusion", description="What to decode.")
    distilled: str = Field(
        "tiny-diffusion-distilled", description="The same model, distilled for parallel decoding."
    )
    methods: Texts = Field(
        [],
        description="Settings or sweeps by name, or one JSON file with settings; none: all of "
        "them.",
    )
    tasks: Texts = Field([], description="Tasks by name; none: all of them.")
    templates: Annotated[list[int], BeforeValidator(split)] = Field(
        [0, 1, 2], description="Wordings of each task; training has not seen the last one."
    )
    samples: Count = Field(25, description="Cases of each task, over all wordings.")
    seed: int = Field(0, ge=0, lt=1_000_000, description="Another one draws other cases.")
    streams: Count = Field(32, description="Answers that grow at once.")
    parts: Annotated[list[Part], BeforeValidator(_without_empty)] = Field(
        [*PARTS], description="Tables to make beside the comparison; '': none."
    )
    output: Path = Field(Path("bench-decoders"), description="Folder for what was found.")

    # What one engine may do at once; a benchmark asks each prompt once for every setting.
    max_step_tokens: Count = Field(4096, description="Rows of a forward pass.")
    prefix_caching: bool = Field(False, description="Reuse prompts from setting to setting.")

    def engine(self, model: str) -> EngineSettings:
        """Return the engine settings for a model."""
        values = {name: getattr(self, name) for name in EngineOptions.model_fields}
        return layer(EngineSettings, {**values, "model": model})


def _costs(value: object) -> object:
    """Return milliseconds by rows from a text like 1:3.1,8:10.9."""
    if not isinstance(value, str):
        return value
    return dict(part.split(":", 1) for part in value.split(",") if ":" in part)


class DraftersOptions(BaseModel):
    """Replay logged token ids (`plait serve --token-trace FILE`) through drafters, without a model.

    Acceptance and tokens per forward pass are exact; the speed-up is predicted from the costs.
    """

    trace: CliPositionalArg[Path] = Field(description="What the server has logged.")
    drafters: Texts = Field(
        [], description="Drafters by name, a+b for a stack; none: each that can be replayed."
    )
    max_draft: int = Field(16, ge=1, le=64, description="Tokens of one draft, at most.")
    always: bool = Field(False, description="Draft whether it pays or not.")
    vocab_size: Count = Field(2**31 - 1, description="One past the largest token id.")
    costs: Annotated[dict[int, float], BeforeValidator(_costs)] = Field(
        {1: 3.1, 8: 10.9, 32: 36.7, 512: 405.0},
        description="Milliseconds of a pass by rows, rising, as rows:ms,...; default: "
        "SmolLM2-135M in int4 on 2 cores with AVX-512.",
    )
    output: Path | None = Field(None, description="JSON file for the findings.")

    @property
    def seconds(self) -> dict[int, float]:
        """Seconds of a pass by rows."""
        return {rows: milliseconds / 1e3 for rows, milliseconds in self.costs.items()}


class BenchOptions(BaseModel):
    """Measure."""

    drafters: CliSubCommand[DraftersOptions] = Field(description="Replay drafters on a log.")

    decoders: CliSubCommand[DecodersOptions] = Field(description="Compare diffusion decoders.")
