"""The samplers that are built in, and their options. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plait.decoders.contract.registry import Method, Options

Estimator = Literal["recursive", "des-raj", "two-loop", "geometric", "genlm"]


class AwrsOptions(Options):
    """Options of awrs."""

    estimator: Estimator = Field(default="recursive", description="how the mass is estimated")
    extra_checks: int = Field(default=3, ge=1, le=64, description="des-raj: beside the draw")
    max_accepts: int = Field(default=2, ge=2, le=64, description="geometric: tokens to pass")


METHODS = (
    Method(
        kind="sampler",
        name="ordinary",
        summary="Temperature, truncation and penalties by Gumbel-max over counter-based noise.",
        source="",
        target="plait.decoders.sampling.sampler:make_ordinary",
    ),
    Method(
        kind="sampler",
        name="awrs",
        summary="The ordinary draw, with an unbiased estimate of the mass that checks allow.",
        source="AWRS, arXiv:2504.05410",
        target="plait.decoders.sampling.awrs:make_awrs",
        options=AwrsOptions,
        presets={"genlm": {"estimator": "genlm"}},
    ),
)
