"""Chimera: a trigram encoder, and one layer over its codes and the target's hidden states.

The code of the last three tokens is cheap and covers the end of the text; the hidden states cover
the rest. The layer attends to both. Head k reads a mixture of the layer's state and the last
verified state. The computation is in heads/drafter.py and heads/nets.py.

Law: none of its own; every draft is verified.
Source: Chimera, arXiv:2402.15758. Differs in that the heads are mixtures in front of the target's
own lm_head, over a draft vocabulary (instead of 57M parameters a head); heads are trained on the
target's distribution instead of the text's tokens; verified rows start at the prompt's last token
and are at most `window`; and verification is exact instead of typical acceptance.
"""

from __future__ import annotations

from plait.decoders.contract.registry import Method
from plait.decoders.speculative.heads.options import HeadOptions

METHOD = Method(
    kind="drafter",
    name="chimera",
    summary="A trained trigram encoder and a layer over the target's hidden states.",
    source="Chimera, arXiv:2402.15758",
    target="plait.decoders.speculative.heads.drafter:make_chimera",
    options=HeadOptions,
    needs=frozenset({"tree", "chimera"}),
    presets={"published": {"depth": 5, "width": 4, "confidence": 0.0, "max_draft": 25}},
)
