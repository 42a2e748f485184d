"""The settings that `python -m benchmarks.decoders` compares, and where others come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

Weights = Literal["base", "distilled"]

AUTOREGRESSIVE = "autoregressive"  # one token after the other
ONE_TOKEN = "static k=1"  # the surest hole, one a forward pass: what all others are compared with


# What a method's authors report, on their models (LLaDA-8B, Dream-7B, SDAR or LLaDA2) and tasks.
CLAIMS: Mapping[str, str] = {
    "threshold": "8.1x throughput with a cache, GSM8K 79.3 to 78.5 (Fast-dLLM)",
    "factor": "more throughput than a threshold at equal accuracy (Fast-dLLM)",
    "entropy-bound": "2-3x fewer passes at equal quality",
    "local-leap": "6.94x throughput, 14.2 % of the passes",
    "learn2pd": "22.58x on GSM8K at unchanged accuracy, 1,024 tokens long, with eotp",
    "eotp": "most of those 22.58x: up to 90 % of the passes settle padding",
    "ada-block": "up to +5.3 points at equal throughput",
    "credit": "5.48x, +0.48 points",
    "free-dave": "up to 2.83x at equal output",
    "d-parallel": "8.5x fewer passes on GSM8K, 75.7 to 76.1; 3.6x before distillation",
    "klass": "up to 2.78x",
    "wino": "6.10x on GSM8K, +2.58 points",
    "prefix-cache": "18.6x on GSM8K with 1,024 tokens, together with parallel decoding",
    "dual-cache": "27.6x on GSM8K with 1,024 tokens, together with parallel decoding",
    "dkv-cache": "2-10x in time",
    "recap": "2.4x in time at equal quality, for images",
}


class Setting(BaseModel):
    """One line of the comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    decoding: Mapping[str, Any]  # as a request would have it
    sweep: str = ""  # settings that share it differ in one parameter and stand in its order
    weights: Weights = "base"
    temperature: float = 0.0
    max_tokens: int = 32  # the longest right answer takes 32 with its end
    delimiters: str = ""  # ada-block's blocks end with the tokens that hold it; empty: line breaks
    equals: str = ""  # the setting whose answers it must give, token for token
    against: str = ONE_TOKEN  # the setting that its method's authors would compare it with


def _unmask(*methods: str | Mapping[str, Any], full: bool = False) -> dict[str, Any]:
    canvas = {"canvas": {"attention": "full"}} if full else {}
    return {"unmasker": list(methods), **canvas}


def _sweep(
    name: str, method: str, parameter: str, values: Iterable[float], weights: Weights = "base"
) -> list[Setting]:
    """Return one setting for each value of a method's parameter."""
    return [
        Setting(
            name=f"{name} {value:g}",
            decoding=_unmask({"name": method, parameter: value}),
            sweep=name,
            weights=weights,
        )
        for value in values
    ]


def _blocks(name: str, *methods: str | Mapping[str, Any], equals: str = "") -> list[Setting]:
    """Return one setting for each block size below the model's own."""
    return [
        Setting(
            name=f"{name} (block {size})",
            decoding={"unmasker": list(methods), "canvas": {"block_size": size}},
            sweep=f"{name} by block",
            equals=f"{equals} (block {size})" if equals else "",
            against=f"static k=1 (block {size})",
        )
        for size in (4, 8, 16)
    ]


_LEAP: Mapping[str, Any] = {"name": "local-leap"}
_SURE: Mapping[str, Any] = {"name": "threshold", "threshold": 0.9}
_LOSSLESS = (
    Setting(
        name=ONE_TOKEN,
        decoding=_unmask({"name": "static", "tokens_per_step": 1}),
        sweep="static k",
    ),
    *(
        Setting(
            name=f"free-dave d={width}",
            decoding=_unmask("static", {"name": "free-dave", "width": width}),
            sweep="free-dave",
            equals=ONE_TOKEN,
        )
        for width in (2, 4, 8)
    ),
    Setting(name="static k=1 (T=1)", decoding=_unmask("static"), temperature=1.0),
    Setting(
        name="free-dave (T=1)",
        decoding=_unmask("static", "free-dave"),
        temperature=1.0,
        equals="static k=1 (T=1)",
        against="static k=1 (T=1)",
    ),
    Setting(
        name="threshold 0.9 + free-dave",
        decoding=_unmask(_SURE, "free-dave"),
        equals="threshold 0.9",
        against="threshold 0.9",
    ),
)
_ALL = "full: static k=1"  # one token per step with full attention
_ALL_SURE = "full: threshold 0.9"
_FULL = (
    Setting(name=_ALL, decoding=_unmask("static", full=True)),
    Setting(
        name="full: free-dave",
        decoding=_unmask("static", "free-dave", full=True),
        equals=_ALL,
        against=_ALL,
    ),
    Setting(name=_ALL_SURE, decoding=_unmask(_SURE, full=True), against=_ALL),
    Setting(name="full: local-leap", decoding=_unmask(_LEAP, full=True), against=_ALL),
    Setting(
        name="full: threshold 0.9 + ada-block",
        decoding=_unmask(_SURE, "ada-block", full=True),
        delimiters=",",
        against=_ALL_SURE,
    ),
    Setting(
        name="full: local-leap + credit + ada-block",
        decoding=_unmask(_LEAP, "credit", "ada-block", full=True),
        delimiters=",",
        against=_ALL,
    ),
    *(
        Setting(
            name=f"full: threshold 0.9 + {cache}",
            decoding=_unmask(_SURE, cache, full=True),
            against=_ALL_SURE,
        )
        for cache in ("prefix-cache", "dual-cache", "dkv-cache", "recap")
    ),
    Setting(
        name="full: threshold 0.9 (canvas 128)",
        decoding=_unmask(_SURE, full=True),
        max_tokens=128,
        against=_ALL_SURE,
    ),
    Setting(
        name="full: threshold 0.9 + eotp (canvas 128)",
        decoding=_unmask(_SURE, "eotp", full=True),
        max_tokens=128,
        against="full: threshold 0.9 (canvas 128)",
    ),
)
_DISTILLED = (
    Setting(
        name="distilled: static k=1",
        decoding=_unmask("static"),
        weights="distilled",
    ),
    Setting(
        name="distilled: free-dave",
        decoding=_unmask("static", "free-dave"),
        weights="distilled",
        equals="distilled: static k=1",
        against="distilled: static k=1",
    ),
    *_sweep("distilled: d-parallel", "d-parallel", "threshold", (0.1, 0.3, 0.5, 0.8), "distilled"),
    *_sweep("distilled: threshold", "threshold", "threshold", (0.95, 0.9, 0.8, 0.7), "distilled"),
)
SETTINGS: tuple[Setting, ...] = (
    Setting(name=AUTOREGRESSIVE, decoding={"unmasker": "off"}),
    *_LOSSLESS,
    *(
        Setting(
            name=f"static k={k}",
            decoding=_unmask({"name": "static", "tokens_per_step": k}),
            sweep="static k",
        )
        for k in (2, 4, 8)
    ),
    *(
        Setting(
            name=f"random k={k}",
            decoding=_unmask({"name": "random", "tokens_per_step": k}),
            sweep="random k",
        )
        for k in (1, 2, 4)
    ),
    *_sweep("threshold", "threshold", "threshold", (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)),
    *_sweep("factor", "factor", "factor", (0.5, 0.7, 1.0, 1.3, 1.6, 1.9)),
    *_sweep("entropy-bound", "entropy-bound", "bound", (0.05, 0.1, 0.2, 0.35, 0.7)),
    *_sweep("local-leap", "local-leap", "relaxed", (0.85, 0.75, 0.6, 0.5)),
    *_sweep("learn2pd", "learn2pd", "threshold", (0.96, 0.9, 0.7, 0.5)),
    *_sweep("hierarchy", "hierarchy", "low", (0.6, 0.4, 0.2)),
    *_sweep("klass", "klass", "threshold", (0.9, 0.7, 0.6)),
    *_sweep("wino", "wino", "draft", (0.9, 0.7, 0.6, 0.5)),
    *_sweep("d-parallel", "d-parallel", "threshold", (0.1, 0.3, 0.5, 0.8)),
    Setting(name="credit + threshold 0.9", decoding=_unmask(_SURE, "credit")),
    Setting(name="credit + local-leap", decoding=_unmask(_LEAP, "credit")),
    *_blocks("static k=1", "static"),
    *_blocks("free-dave", "static", "free-dave", equals="static k=1"),
    *_blocks("threshold 0.9", _SURE),
    *_FULL,
    *_DISTILLED,
)


class BadSettings(ValueError):
    """The settings that were asked for can't be had; the message says why."""


def choose_settings(wanted: Sequence[str], known: Sequence[Setting] = SETTINGS) -> list[Setting]:
    """Return the settings that a command line asks for, in the order of the comparison.

    What they are compared with comes along: one token per step, the autoregressive run, what they
    must equal and what they are held against.

    Args:
        wanted: Names of settings or of sweeps, or one JSON file with a list of settings; empty:
            all known ones.
        known: The built-in settings.
    Raises:
        BadSettings: a name is unknown or taken, or the file holds something else.
    """
    if len(wanted) == 1 and wanted[0].endswith(".json"):
        own = _read(Path(wanted[0]))
        known, wanted = [*known, *own], [setting.name for setting in own]
    by_name = {setting.name: setting for setting in known}
    if len(by_name) < len(known):
        raise BadSettings("two settings have one name")
    if not wanted:
        return list(known)
    names = {AUTOREGRESSIVE, ONE_TOKEN}
    for word in wanted:
        found = {s.name for s in known if word in (s.name, s.sweep)}
        if not found:
            raise BadSettings(f"no setting {word!r}; there are: {', '.join(by_name)}")
        names |= found
    for _ in range(2):  # what is compared with may itself be compared with something
        names |= {other for n in names for other in (by_name[n].equals, by_name[n].against)} - {""}
    return [setting for setting in known if setting.name in names]


def _read(path: Path) -> list[Setting]:
    try:
        return TypeAdapter(list[Setting]).validate_python(json.loads(path.read_text()))
    except (ValidationError, ValueError) as error:
        raise BadSettings(f"{path}: {error}") from error
