"""From the files of a Hugging Face folder to what a diffusion model was trained for. No torch.

A file says little of it, so each family has its own defaults. The keys of config.json that plait
reads for every family, and that win over the defaults:

    mask_token_id                 else the tokenizer's mask token, else the family's
    block_size (or bd_size)       a block sees itself and what is before it
    block_sizes                   those a request may choose from; the first ones trained
    also_full                     trained for full attention too
    canvas                        full attention: most positions answered at a time
    right_shift_logits            row i predicts token i + 1
    noise                         "mask", the only one that plait decodes

Sources: the files of the released models, read in September 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.decoders.diffusion.spec import Attention, DiffusionSpec
from plait.server.models.catalog import BadModel
from plait.server.models.hf.json_files import read_json

Config = Mapping[str, Any]

OWN_KEYS: Config = {
    "mask_token_id": None,
    "block_size": None,
    "block_sizes": None,
    "also_full": False,
    "canvas": 128,
    "right_shift_logits": None,
    "noise": "mask",
}
_BLOCK = 32  # of positions settled before the next ones begin, where nothing else is said


@dataclass(frozen=True, slots=True)
class _Family:
    """What is true of a family unless its files say otherwise."""

    attention: Attention
    block_size: int = _BLOCK
    shift: bool = False
    mask_id: int | None = None
    ends: tuple[str, ...] = ()  # tokens that end an answer though the files don't say so


_FAMILIES: Mapping[str, _Family] = {
    "sdar": _Family("block", block_size=4, mask_id=151669),
    "llada": _Family("full", mask_id=126336, ends=("<|eot_id|>",)),
    "llada2_moe": _Family("block", mask_id=156895),
    "Dream": _Family("full", shift=True, mask_id=151666, ends=("<|im_end|>",)),
    "Fast_dLLM_Qwen": _Family("block", shift=True, mask_id=151665),
    "a2d-llama": _Family("full"),
    "a2d-qwen2": _Family("full"),
    "a2d-qwen3": _Family("full"),
}
# A later Dream kept the name, but learnt from blocks, and no longer to predict the next token.
_BY_ARCHITECTURE: Mapping[str, _Family] = {
    "DreamForCausalLM": _Family("block", mask_id=151669, ends=("<|im_end|>",)),
}


def read_diffusion(folder: Path, config: Config) -> DiffusionSpec | None:
    """Return what the model in a folder was trained for; None: one token after the other.

    Raises:
        BadModel: the folder names no mask token, or asks for what plait can't decode.
    """
    family = _family(config)
    if family is None:
        return None
    words = _Words(folder)
    block_size = _block_size(config) or family.block_size
    sizes = tuple(config.get("block_sizes") or ())
    spec = DiffusionSpec(
        mask_id=_mask_id(config, words, family),
        eos_ids=_ends(folder, config, words, family),
        attention=_attention(config, family),
        block_size=block_size,
        block_sizes=tuple(sorted({*sizes, block_size})) if sizes else (),
        also_full=bool(config.get("also_full")),
        shift=_shift(config, family),
        canvas=int(config.get("canvas") or OWN_KEYS["canvas"]),
    )
    _check(spec, config)
    return spec


class _Words:
    """The special tokens of a folder by their text; files are read when first asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids: dict[str, int] | None = None

    def mask(self) -> int | None:
        """Return the id of the tokenizer's mask token, if it names one."""
        named = read_json(self._folder / "tokenizer_config.json").get("mask_token")
        return self.id(named["content"] if isinstance(named, dict) else named)

    def id(self, text: str | None) -> int | None:
        """Return the id of an added token."""
        if self._ids is None:
            added = read_json(self._folder / "tokenizer.json").get("added_tokens") or ()
            self._ids = {token["content"]: token["id"] for token in added}
        return None if text is None else self._ids.get(text)


def _family(config: Config) -> _Family | None:
    named = [_BY_ARCHITECTURE.get(name) for name in config.get("architectures") or ()]
    return next((family for family in named if family), _FAMILIES.get(config["model_type"]))


def _mask_id(config: Config, words: _Words, family: _Family) -> int:
    given = config.get("mask_token_id")
    if given is None:
        given = words.mask()
    given = family.mask_id if given is None else given
    if given is None:
        raise BadModel("neither mask_token_id nor the tokenizer's mask_token says what a hole is")
    return int(given)


def _ends(folder: Path, config: Config, words: _Words, family: _Family) -> tuple[int, ...]:
    """Return every id that ends an answer; generation_config.json knows best."""
    given = read_json(folder / "generation_config.json").get("eos_token_id")
    given = config.get("eos_token_id") if given is None else given
    ids = given if isinstance(given, list) else [given]
    named = [words.id(text) for text in family.ends]
    return tuple(sorted({int(i) for i in (*ids, *named) if i is not None}))


def _block_size(config: Config) -> int:
    return int(config.get("block_size") or config.get("bd_size") or 0)


def _attention(config: Config, family: _Family) -> Attention:
    return "block" if _block_size(config) else family.attention


def _shift(config: Config, family: _Family) -> bool:
    stated = config.get("right_shift_logits")
    return family.shift if stated is None else bool(stated)


def _check(spec: DiffusionSpec, config: Config) -> None:
    if (noise := config.get("noise", OWN_KEYS["noise"])) != OWN_KEYS["noise"]:
        raise BadModel(f"noise {noise!r} is not supported: only holes are filled (mask)")
    if not 0 <= spec.mask_id < config["vocab_size"]:
        raise BadModel(f"the mask token {spec.mask_id} is not one of the vocabulary")
    if min(spec.block_size, spec.canvas, *spec.block_sizes) < 1:
        raise BadModel("block_size, block_sizes and canvas must be positive")
