"""Builds the drafters that draw from a second model; only a worker that has one gets here."""

from __future__ import annotations

from plait.decoders.speculative.draft_model.chains import Chains
from plait.decoders.speculative.draft_model.superposing import Mixture, Superposer
from plait.decoders.speculative.drafters.draft_model import (
    DraftModelDrafter,
    DraftModelOptions,
    SecondModelOptions,
)
from plait.decoders.speculative.drafters.pearl import OverlappedPearl, Pearl, PearlOptions
from plait.decoders.speculative.drafters.superposed_tree import (
    MixtureOptions,
    SuperposedTree,
    SuperposedTreeOptions,
)
from plait.decoders.speculative.lossy.superposed import Superposed, SuperposedOptions
from plait.decoders.speculative.workshop import Workshop


def draft_model(options: DraftModelOptions, *, workshop: Workshop) -> DraftModelDrafter:
    """Build `draft-model`."""
    return DraftModelDrafter(options, _chains(options, workshop, options.min_survival))


def pearl(options: PearlOptions, *, workshop: Workshop) -> Pearl | OverlappedPearl:
    """Build `pearl`."""
    chains = _chains(options, workshop, options.min_survival)
    if options.overlap:
        return OverlappedPearl(options, chains, workshop.costs)
    return Pearl(options, chains, workshop.costs)


def superposed_tree(options: SuperposedTreeOptions, *, workshop: Workshop) -> SuperposedTree:
    """Build `superposed-tree`."""
    return SuperposedTree(options.length, *_superposing(options, workshop))


def superposed(options: SuperposedOptions, *, workshop: Workshop) -> Superposed:
    """Build `superposed`."""
    return Superposed(options.length, *_superposing(options, workshop))


def _superposing(options: MixtureOptions, workshop: Workshop) -> tuple[Chains, Superposer]:
    chains = _chains(options, workshop)
    mixture = Mixture(options.drafts, options.alpha, options.temperature, options.top)
    return chains, Superposer(chains, mixture, workshop)


def _chains(options: SecondModelOptions, workshop: Workshop, min_survival: float = 0.0) -> Chains:
    model = workshop.draft_model
    assert model is not None, "the worker has no draft model, and says that it has"
    return Chains(
        model,
        read_rows=options.read_rows,
        min_survival=min_survival,
        naive=workshop.naive,
    )
