"""All decoder layers in one call: x [rows, hidden] fp32 runs through them in place."""

from __future__ import annotations

from plait.kernels.decoder_stack.layers import LayerWeights, StackConfig
from plait.kernels.decoder_stack.stack import DecoderStack

__all__ = ["DecoderStack", "LayerWeights", "StackConfig"]
