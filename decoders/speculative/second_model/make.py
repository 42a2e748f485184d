"""Builds the drafters that draw from a second model; only a worker that has one gets here."""

from __future__ import annotations

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
from plait.decoders.speculative.second_model.chains import Chains
from plait.decoders.speculative.second_model.protocol import DraftModel
from plait.decoders.speculative.second_model.superposing import Mixture, Superposer
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
    chains = _chains(options, workshop)
    superposer = _superposer(options, workshop, chains)
    return SuperposedTree(options.length, chains, superposer, workshop.stores)


def superposed(options: SuperposedOptions, *, workshop: Workshop) -> Superposed:
    """Build `superposed`."""
    chains = _chains(options, workshop)
    superposer = _superposer(options, workshop, chains)
    return Superposed(options.length, chains, superposer, workshop.stores)


def _superposer(options: MixtureOptions, workshop: Workshop, chains: Chains) -> Superposer:
    mixture = Mixture(options.drafts, options.alpha, options.temperature, options.top)
    return Superposer(_model(workshop), chains, mixture, naive=workshop.naive)


def _chains(options: SecondModelOptions, workshop: Workshop, min_survival: float = 0.0) -> Chains:
    return Chains(
        _model(workshop),
        read_rows=options.read_rows,
        min_survival=min_survival,
        naive=workshop.naive,
    )


def _model(workshop: Workshop) -> DraftModel:
    model = workshop.draft_model
    assert model is not None, "the worker has no draft model, and says that it has"
    return model
