"""Builds the drafters that use a draft model, for workers that have one."""

from __future__ import annotations

from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.draft_model.runner import DraftModelRunner
from plait.decoders.speculative.draft_model.superposition import (
    SuperposedBeamSearch,
    SuperpositionConfig,
)
from plait.decoders.speculative.drafters.draft_model import (
    DraftModelDrafter,
    DraftModelOptions,
    DraftModelReadOptions,
)
from plait.decoders.speculative.drafters.pearl import (
    OverlappedPearlDrafter,
    PearlDrafter,
    PearlOptions,
)
from plait.decoders.speculative.drafters.superposed_tree import (
    SuperposedTreeDrafter,
    SuperposedTreeOptions,
    SuperpositionOptions,
)
from plait.decoders.speculative.lossy.superposed import SuperposedDrafter, SuperposedOptions


def draft_model(options: DraftModelOptions, *, context: DrafterContext) -> DraftModelDrafter:
    """Build `draft-model`."""
    return DraftModelDrafter(options, _runner(options, context, options.min_survival))


def pearl(
    options: PearlOptions, *, context: DrafterContext
) -> PearlDrafter | OverlappedPearlDrafter:
    """Build `pearl`."""
    runner = _runner(options, context, options.min_survival)
    if options.overlap:
        return OverlappedPearlDrafter(options, runner, context.costs)
    return PearlDrafter(options, runner, context.costs)


def superposed_tree(
    options: SuperposedTreeOptions, *, context: DrafterContext
) -> SuperposedTreeDrafter:
    """Build `superposed-tree`."""
    return SuperposedTreeDrafter(options.length, *_beam_search(options, context))


def superposed(options: SuperposedOptions, *, context: DrafterContext) -> SuperposedDrafter:
    """Build `superposed`."""
    return SuperposedDrafter(options.length, *_beam_search(options, context))


def _beam_search(
    options: SuperpositionOptions, context: DrafterContext
) -> tuple[DraftModelRunner, SuperposedBeamSearch]:
    runner = _runner(options, context)
    config = SuperpositionConfig(options.drafts, options.alpha, options.temperature, options.top)
    return runner, SuperposedBeamSearch(runner, config, context)


def _runner(
    options: DraftModelReadOptions, context: DrafterContext, min_path_prob: float = 0.0
) -> DraftModelRunner:
    model = context.draft_model
    assert model is not None, "the worker lists the capability draft_model"
    return DraftModelRunner(
        model,
        read_rows=options.read_rows,
        min_path_prob=min_path_prob,
        backend=context.backend,
    )
