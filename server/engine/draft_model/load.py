"""Loads the draft model: another model, or the target without some of its layers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from plait.server.engine.draft_model.cached import CachedDraftModel
from plait.server.engine.kv.block_table import BLOCK_SIZE
from plait.server.models.catalog import BadModel, ModelFiles, resolve
from plait.server.models.load import load_model
from plait.server.prompt.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from plait.server.models.transformer import Transformer
    from plait.server.settings import EngineSettings

SELF = "self"
SPAN = re.compile(r"(\d+)(?:-(\d+))?")


def load_draft_model(
    settings: EngineSettings, target: Transformer, files: ModelFiles
) -> CachedDraftModel | None:
    """Return the draft model that the settings name, or None.

    Args:
        settings: draft_model is a model's name, `self` (the target, maybe in other weights) or
            self:LAYERS, for example self:0-9,20-29 (the target without the other layers).
        target: the model that verifies; a draft model made of its layers shares their memory.
        files: the target's.
    Raises:
        BadModel: it can't be loaded, has another vocabulary, or its cache holds no text; or
            draft weights are set without a draft model.
    """
    name = settings.draft_model
    if not name:
        if settings.draft_weights != "auto":
            raise BadModel(f"draft_weights {settings.draft_weights}: no draft model is named.")
        return None
    if target.diffusion is not None:
        raise BadModel(f"draft model {name!r}: a diffusion model drafts its own canvases.")
    source, _, layers = name.partition(":")
    is_own = source == SELF
    model = _own(settings, target, files) if is_own else _other(settings, target, files)
    if is_own and layers:
        model = model.with_layers(parse_layers(layers, model.spec.layers))
    num_blocks = settings.draft_kv_cache_bytes // model.kv_block_bytes
    if num_blocks < 2:
        raise BadModel(
            f"draft_kv_cache_bytes {settings.draft_kv_cache_bytes} holds {num_blocks} blocks of "
            f"{BLOCK_SIZE} tokens ({model.kv_block_bytes} bytes each); give at least two."
        )
    return CachedDraftModel(
        model,
        model.new_kv_cache(num_blocks),
        vocab_size=target.vocab_size,
        max_positions=model.max_positions,
        backend=model.backend,
    )


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Return the layers of a list of ranges: 0-2,5 means 0, 1, 2, 5.

    Raises:
        BadModel: it is no such list, or its layers are not rising numbers below `count`.
    """
    found: list[int] = []
    for part in text.split(","):
        span = SPAN.fullmatch(part.strip())
        if span is None:
            raise BadModel(f"draft model layers {text!r}: {part!r} is no layer and no span of them")
        first, last = int(span[1]), int(span[2] or span[1])
        found.extend(range(first, min(last, count) + 1))
    if not found or found[-1] >= count or sorted(set(found)) != found:
        raise BadModel(f"draft model layers {text!r} are not rising numbers below {count}")
    return tuple(found)


def _own(settings: EngineSettings, target: Transformer, files: ModelFiles) -> Transformer:
    """Return the target, loaded again if the draft model has other weights."""
    if settings.draft_weights in ("auto", target.mode):
        return target
    return _load(settings, files)


def _other(settings: EngineSettings, target: Transformer, files: ModelFiles) -> Transformer:
    """Return another model with the target's vocabulary."""
    name = settings.draft_model
    found = resolve(name)
    model = _load(settings, found)
    if model.diffusion is not None:
        raise BadModel(f"draft model {name!r} is a diffusion model; it does not write ahead.")
    have, want = _tokens(found), _tokens(files)
    if have != want:
        at = next(
            (i for i, pair in enumerate(zip(have, want, strict=False)) if len({*pair}) > 1), -1
        )
        raise BadModel(
            f"draft model {name!r} has another vocabulary than {files.name!r}: {len(have)} tokens "
            f"and {len(want)}"
            + (f"; token {at} is {have[at]!r} and {want[at]!r}." if at >= 0 else ".")
        )
    return model


def _tokens(files: ModelFiles) -> list[bytes]:
    tokenizer = load_tokenizer(files)
    return [tokenizer.token_name(token) for token in range(len(tokenizer.token_bytes))]


def _load(settings: EngineSettings, files: ModelFiles) -> Transformer:
    return load_model(
        files,
        weights=settings.draft_weights,
        device=settings.device,
        threads=settings.threads,
        reference=settings.kernels == "reference",
    )
