"""Calls of decoders: each decoder once for all its sequences, and one fault stays with one of them.

A decoder that fails to propose for many is asked for each alone. One that fails to accept has
sorted out by itself which sequence is at fault, as far as that can be, so all of them are.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import replace
from functools import partial

from plait.decoders.contract.decoder import DraftBudget, Outcome, Proposal
from plait.decoders.contract.isolation import attempt, faulty
from plait.server.engine.sequence import Sequence
from plait.server.engine.step.forward_pass import ForwardPass
from plait.server.engine.step.reports import group_by_decoder, select_sequences

Failures = list[tuple[Sequence, Exception]]


def propose(sequences: Sequences[Sequence], budget: DraftBudget) -> tuple[list[Proposal], Failures]:
    """Return a proposal for each sequence, and the sequences whose decoder can't make one.

    Each decoder gets its share of the budget.
    """
    proposals: dict[int, Proposal] = {}
    failures: Failures = []
    for decoder, members in group_by_decoder(sequences):
        share = replace(budget, drafts=budget.drafts * len(members) // len(sequences))
        made = attempt(partial(decoder.propose, [sequences[i].state for i in members], share))
        if isinstance(made, Exception):
            made = [_propose_alone(sequences[i], share, failures) for i in members]
        proposals |= dict(zip(members, made, strict=True))
    return [proposals[i] for i in range(len(sequences))], failures


def accept(made: ForwardPass) -> dict[int, Outcome]:
    """Return the outcome of each slice of a pass whose logits are due, by its id."""
    due = [piece for piece in made.slices if piece.proposal is not None]
    outcomes: dict[int, Outcome] = {}
    for decoder, members in group_by_decoder([piece.sequence for piece in due]):
        states = [due[i].sequence.state for i in members]
        found = attempt(partial(decoder.accept, states, select_sequences(made.forward, members)))
        if isinstance(found, Exception):
            found = [faulty(found)] * len(members)
        outcomes |= {id(due[i]): outcome for i, outcome in zip(members, found, strict=True)}
    return outcomes


def _propose_alone(sequence: Sequence, budget: DraftBudget, failures: Failures) -> Proposal:
    made = attempt(lambda: sequence.decoder.propose([sequence.state], budget)[0])
    if isinstance(made, Exception):
        failures.append((sequence, made))
        return Proposal()
    return made
