"""Builds the drafters that draw from a second model; only a worker that has one gets here."""

from __future__ import annotations

from plait.decoders.speculative.drafters.draft_model import DraftModelDrafter, DraftModelOptions
from plait.decoders.speculative.drafters.pearl import OverlappedPearl, Pearl, PearlOptions
from plait.decoders.speculative.second_model.chains import Chains
from plait.decoders.speculative.workshop import Workshop


def draft_model(options: DraftModelOptions, *, workshop: Workshop) -> DraftModelDrafter:
    """Build `draft-model`."""
    return DraftModelDrafter(options, _chains(options, workshop))


def pearl(options: PearlOptions, *, workshop: Workshop) -> Pearl | OverlappedPearl:
    """Build `pearl`."""
    chains = _chains(options, workshop)
    if options.overlap:
        return OverlappedPearl(options, chains, workshop.costs)
    return Pearl(options, chains, workshop.costs)


def _chains(options: DraftModelOptions, workshop: Workshop) -> Chains:
    model = workshop.draft_model
    assert model is not None, "the worker has no draft model, and says that it has"
    return Chains(
        model,
        read_rows=options.read_rows,
        min_survival=options.min_survival,
        naive=workshop.naive,
    )
