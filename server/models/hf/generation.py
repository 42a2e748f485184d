"""Recommended sampling parameters of a model: generation_config.json or a GGUF file's metadata.

As vLLM and llama.cpp do, it stands in for what a request does not say. Only stated values count:
transformers' own defaults (top_k 50) are not the makers' word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plait.server.models.catalog import BadModel

# general.sampling.* of GGUF files -> as generation_config.json calls it
_GGUF_NAMES = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_LEGAL: Mapping[str, Callable[[float], bool]] = {
    "temperature": lambda value: 0 <= value <= 2,
    "top_p": lambda value: 0 < value <= 1,
    "top_k": lambda value: value >= -1 and value == int(value),
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: 0 < value <= 2,
}


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request that says nothing gets; these values change nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def stated(self) -> dict[str, float]:
        """Return the values that do change something, by name."""
        plain = asdict(SamplingDefaults())
        return {name: value for name, value in asdict(self).items() if value != plain[name]}


def sampling_from_config(config: Mapping[str, Any]) -> SamplingDefaults:
    """Return what a parsed generation_config.json recommends.

    Raises:
        BadModel: a value is outside of what a request could ask for.
    """
    values = {name: config[name] for name in _LEGAL if config.get(name) is not None}
    for name, value in values.items():
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if not is_number or not _LEGAL[name](value):
            raise BadModel(
                f"{name} {value!r} can't be a default: mend it, or give --generation-config off"
            )
    top_k = max(int(values.pop("top_k", 0)), 0)
    return SamplingDefaults(top_k=top_k, **{name: float(v) for name, v in values.items()})


def sampling_from_metadata(metadata: Mapping[str, Any]) -> SamplingDefaults:
    """Return what the metadata of a GGUF file recommend; raise BadModel as sampling_from_config."""
    found = {usual: metadata.get(f"general.sampling.{own}") for own, usual in _GGUF_NAMES.items()}
    # They are single-precision numbers: 0.8 is meant, not 0.800000011920929.
    return sampling_from_config(
        {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in found.items()}
    )
