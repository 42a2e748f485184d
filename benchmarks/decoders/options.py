"""The options of `python -m benchmarks.decoders`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import CliPositionalArg

from benchmarks.command_line import Command, command_config
from plait.server.config_sources import Count, Texts, settings_from, split_commas
from plait.server.options.serve import EngineOptions
from plait.server.settings import EngineSettings

Part = Literal["serving", "json"]
PARTS: tuple[Part, ...] = ("serving", "json")


def _without_empty(value: object) -> object:
    """Return the parts of a comma-separated text; an empty one has none."""
    parts = split_commas(value)
    return [part for part in parts if part != ""] if isinstance(parts, list) else parts


class DecodersOptions(EngineOptions, Command):
    """Compare the ways to decode one diffusion model: accuracy, forward passes, time.

    Every setting stands beside one token per step and the autoregressive run of the same weights.
    A run that was interrupted resumes where it stopped.
    """

    model_config = command_config("benchmarks.decoders")

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
    templates: Annotated[list[int], BeforeValidator(split_commas)] = Field(
        [0, 1, 2], description="Wordings of each task; training has not seen the last one."
    )
    samples: Count = Field(25, description="Cases of each task, over all wordings.")
    seed: int = Field(0, ge=0, lt=1_000_000, description="Another one draws other cases.")
    streams: Count = Field(32, description="Requests that run at once.")
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
        return settings_from(EngineSettings, {**values, "model": model})
