"""Chimera: a trigram encoder and one layer over its codes and the model's hidden states.

The code of the last three tokens is quick and knows the text's end; the states know the rest. The
layer reads both, and head k a mixture of its state and the last true one. What is computed stands
in heads/drafting.py and nets.py.

Law: none of its own; verified as every draft.
Source: Chimera, arXiv:2402.15758. What differs: the heads are mixtures in front of the model's own
embeddings, tied to its lm_head, over a draft vocabulary (57M parameters a head otherwise); heads
learn the model's law rather than the text's tokens; true rows are those from the prompt's last
token on, `window` of them at most; and typical acceptance gives way to the exact verifier.
"""

from __future__ import annotations

from plait.decoders.contract.registry import Method
from plait.decoders.speculative.heads.options import HeadOptions

METHOD = Method(
    kind="drafter",
    name="chimera",
    summary="A trained trigram encoder and a layer over the model's hidden states.",
    source="Chimera, arXiv:2402.15758",
    target="plait.decoders.speculative.heads.drafter:make_chimera",
    options=HeadOptions,
    needs=frozenset({"tree", "chimera"}),
    presets={"published": {"depth": 5, "width": 4, "confidence": 0.0, "max_draft": 25}},
)
