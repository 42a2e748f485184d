"""Options of the pool, its machines, and of the place that an engine takes on one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, Field
from pydantic_settings import NoDecode

from plait.server.config_sources import (
    BytesOrZero,
    Count,
    Seconds,
    split_pairs,
)
from plait.server.settings import EngineSettings, PoolSettings, RaySettings

_POOL, _RAY, _ENGINE = PoolSettings(), RaySettings(), EngineSettings()
MAX_REPLICAS = 1024


def _known_ports(value: str) -> str:
    low, separator, high = value.partition("-")
    is_range = separator and low.isdecimal() and high.isdecimal()
    if value and not (is_range and 1 <= int(low) <= int(high) <= 65535):
        raise ValueError(f"{value!r} is no range of ports: write LOW-HIGH, such as 9510-9529")
    return value


def _known_amounts(values: dict[str, float]) -> dict[str, float]:
    for name, amount in values.items():
        if not name or not (math.isfinite(amount) and amount > 0):
            raise ValueError(f"{name}={amount:g}: write NAME=AMOUNT, the amount above 0")
    return values


Ports = Annotated[str, AfterValidator(_known_ports)]
Amounts = Annotated[
    dict[str, float], NoDecode, BeforeValidator(split_pairs), AfterValidator(_known_amounts)
]
Labels = Annotated[dict[str, str], NoDecode, BeforeValidator(split_pairs)]
Amount = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class RayOptions(BaseModel):
    """The machines of the pool."""

    pool: Literal["local", "ray"] = Field(
        _POOL.pool, description="Where workers run: on this machine, or on those of a Ray cluster."
    )
    ray_address: str = Field(
        _RAY.ray_address,
        description="The cluster's address (HOST:PORT, auto); empty: the one that this machine is "
        "part of, or else one of this machine alone, which is started.",
    )
    ray_host: str = Field(
        _RAY.ray_host,
        description="This machine's address for workers on others; empty: the one Ray knows.",
    )
    ray_ports: Ports = Field(
        _RAY.ray_ports,
        description="Ports that workers connect to here, one each: LOW-HIGH; empty: any free ones.",
    )
    ray_weights: Literal["shared", "object-store"] = Field(
        _RAY.ray_weights,
        description="How a model's files get to a machine: they are there, under the same path; "
        "or copied through Ray's object store.",
    )


class PoolOptions(RayOptions):
    """The worker processes."""

    replicas: int = Field(_POOL.replicas, ge=1, le=MAX_REPLICAS, description="Workers per model.")
    max_replicas: int = Field(
        _POOL.max_replicas,
        ge=0,
        le=MAX_REPLICAS,
        description="Up to how many more are started while requests queue; 0: no more.",
    )
    scale_up_requests: Count = Field(
        _POOL.scale_up_requests,
        description="Requests per worker, running or waiting, above which one more is started.",
    )
    scale_down_s: Seconds = Field(
        _POOL.scale_down_s,
        description="One of those ends when fewer would have been enough for so long.",
    )
    max_queue: Count = Field(
        _POOL.max_queue, description="Requests waiting or running per worker; more get a 429."
    )
    default_deadline_s: Seconds | None = Field(
        _POOL.default_deadline_s, description="Deadline of requests that bring none."
    )
    ready_timeout_s: Seconds = Field(
        _POOL.ready_timeout_s, description="A model that loads longer is given up."
    )
    heartbeat_timeout_s: Seconds = Field(
        _POOL.heartbeat_timeout_s,
        description="A worker silent for so long is killed, if it had so much CPU or uses none.",
    )
    restart_backoff_s: Seconds = Field(
        _POOL.restart_backoff_s, description="Pause before a lost worker's first restart; doubles."
    )
    restart_backoff_max_s: Seconds = Field(
        _POOL.restart_backoff_max_s, description="The longest such pause."
    )


class PlacementOptions(BaseModel):
    """What a worker takes of a machine of a Ray cluster."""

    ray_cpus: Amount = Field(
        _ENGINE.ray_cpus, description="CPUs of a worker, and its threads, unless these are given."
    )
    ray_gpus: Amount = Field(_ENGINE.ray_gpus, description="GPUs of a worker.")
    ray_memory_bytes: BytesOrZero = Field(
        ByteSize(_ENGINE.ray_memory_bytes), description="Memory of a worker; 0: not asked for."
    )
    ray_resources: Amounts = Field(
        {}, description="NAME=AMOUNT: other resources of Ray's that a worker takes."
    )
    ray_labels: Labels = Field(
        {}, description="NAME=VALUE: labels that its machine has, as Ray's label selectors."
    )


def check_pool(options: PoolOptions, given: Iterable[str]) -> None:
    """Refuse options of the pool that contradict each other, or that nothing would read.

    Args:
        given: the options that somebody has set.
    Raises:
        ValueError: naming the option and what to change.
    """
    if 0 < options.max_replicas < options.replicas:
        raise ValueError(f"max_replicas: {options.max_replicas} is below replicas")
    for name in sorted(given):
        if name.startswith("ray_") and options.pool != "ray":
            raise ValueError(f"{name}: only with --pool ray")
        if name.startswith("scale_") and not options.max_replicas:
            raise ValueError(f"{name}: only with --max-replicas")
