"""EAGLE: a small layer goes on from the model's own hidden states, token by token.

The head pairs the state at a place with the token drawn there, and gives a state like the model's
of the next place; the model's embeddings, tied to its lm_head, make guesses of it. Trained on
states of its own (training-time test). What is computed stands in heads/drafting.py and nets.py.

Law: none of its own; verified as every draft.
Source: EAGLE-3, arXiv:2503.01840; EAGLE, arXiv:2401.15077. What differs: the states are those of
the last layer, since the engine hands over no others; true rows are those from the prompt's last
token on, `window` of them at most, so the prompt itself is known through the states alone; guesses
are ranked with the noise of the draw; and the default tree is a path with a few leaves, because a
step of the head costs a CPU a good part of a row.
"""

from __future__ import annotations

from plait.decoders.contract.registry import Method
from plait.decoders.speculative.heads.options import HeadOptions

METHOD = Method(
    kind="drafter",
    name="eagle",
    summary="A trained layer that goes on from the model's hidden states.",
    source="EAGLE-3, arXiv:2503.01840",
    target="plait.decoders.speculative.heads.drafter:make_eagle",
    options=HeadOptions,
    needs=frozenset({"tree", "eagle"}),
    presets={
        "published": {"depth": 7, "width": 10, "beam": 10, "confidence": 0.0, "max_draft": 60}
    },
)
