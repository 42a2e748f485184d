"""Builds the drafters that draw from a second model; only a worker that has one gets here."""

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
    return DraftModelDrafter(options, _chains(options, context, options.min_survival))


def pearl(
    options: PearlOptions, *, context: DrafterContext
) -> PearlDrafter | OverlappedPearlDrafter:
    """Build `pearl`."""
    runner = _chains(options, context, options.min_survival)
    if options.overlap:
        return OverlappedPearlDrafter(options, runner, context.costs)
    return PearlDrafter(options, runner, context.costs)


def superposed_tree(
    options: SuperposedTreeOptions, *, context: DrafterContext
) -> SuperposedTreeDrafter:
    """Build `superposed-tree`."""
    return SuperposedTreeDrafter(options.length, *_superposing(options, context))


def superposed(options: SuperposedOptions, *, context: DrafterContext) -> SuperposedDrafter:
    """Build `superposed`."""
    return SuperposedDrafter(options.length, *_superposing(options, context))


def _superposing(
    options: SuperpositionOptions, context: DrafterContext
) -> tuple[DraftModelRunner, SuperposedBeamSearch]:
    runner = _chains(options, context)
    mixture = SuperpositionConfig(options.drafts, options.alpha, options.temperature, options.top)
    return runner, SuperposedBeamSearch(runner, mixture, context)


def _chains(
    options: DraftModelReadOptions, context: DrafterContext, min_survival: float = 0.0
) -> DraftModelRunner:
    model = context.draft_model
    assert model is not None, "the worker has no draft model, and says that it has"
    return DraftModelRunner(
        model,
        read_rows=options.read_rows,
        min_survival=min_survival,
        naive=context.naive,
    )
