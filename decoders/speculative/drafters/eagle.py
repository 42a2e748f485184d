"""EAGLE: a small layer continues from the target's hidden states, token by token.

The head combines the hidden state of a position with the token sampled there, and predicts the
hidden state of the next position, from which the target's lm_head gives the guesses. It is trained
on its own outputs (training-time test). The computation is in heads/drafter.py and heads/nets.py.

Law: none of its own; every draft is verified.
Source: EAGLE-3, arXiv:2503.01840; EAGLE, arXiv:2401.15077. Differs in that only the states of the
last layer are read, because the engine provides no others; verified rows start at the prompt's last
token and are at most `window`; guesses are ranked with the noise of the draw; and the default tree
is a path with a few leaves, because a step of the head is not much cheaper than a row on a CPU.
"""

from __future__ import annotations

from plait.decoders.contract.registry import Method
from plait.decoders.speculative.heads.options import HeadOptions

METHOD = Method(
    kind="drafter",
    name="eagle",
    summary="A trained layer that continues from the target's hidden states.",
    source="EAGLE-3, arXiv:2503.01840",
    target="plait.decoders.speculative.heads.drafter:make_eagle",
    options=HeadOptions,
    needs=frozenset({"tree", "eagle"}),
    presets={
        "published": {"depth": 7, "width": 10, "beam": 10, "confidence": 0.0, "max_draft": 60}
    },
)
