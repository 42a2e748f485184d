"""The decoder stack: prepared once, then called for every forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from plait.kernels import extension
from plait.kernels.decoder_stack import reference as _naive
from plait.kernels.decoder_stack.layers import LayerWeights, StackConfig
from plait.kernels.paged_attention import AttentionMetadata

if TYPE_CHECKING:
    from plait.kernels._cpu import CompiledStack

_WEIGHTS = ("q", "k", "v", "o", "gate", "up", "down")


class DecoderStack:
    """The layers of one model, ready to run.

    The compiled path is taken when every weight is in panels. It runs all layers in one parallel
    region and keeps its scratch memory from call to call; layers with experts go through their
    kernels one by one. One call at a time.
    """

    def __init__(self, layers: Sequence[LayerWeights], config: StackConfig) -> None:
        self.layers = tuple(layers)
        self.config = config
        panels = all(getattr(x, n).layout == "panels" for x in self.layers for n in _WEIGHTS)
        self._steps = _naive.COMPILED if panels else _naive.ORACLES
        whole = panels and not any(layer.experts for layer in self.layers)
        self._compiled = self._compile() if whole else None

    def forward(
        self,
        x: Tensor,
        metadata: AttentionMetadata,
        k_cache: Tensor,
        v_cache: Tensor,
        first_layer: int = 0,
        last_layer: int | None = None,
    ) -> None:
        """Run x [rows, hidden] fp32 through layers first_layer .. last_layer - 1, in place.

        k_cache [layers, num_blocks, kv_heads, head_dim, 16] and v_cache [layers, num_blocks,
        kv_heads, 16, head_dim], fp32 or bf16: the rows' keys and values are written at their
        slots, then read with the rest. Law: on the compiled path every row has the same bits
        whatever the other rows are, and however a prompt is cut into calls.
        """
        last_layer = len(self.layers) if last_layer is None else last_layer
        if self._compiled is not None:
            self._compiled.forward(x, metadata, k_cache, v_cache, first_layer, last_layer)
            return
        for index in range(first_layer, last_layer):
            kv = k_cache[index], v_cache[index]
            own = metadata.at_layer(index)
            _naive.run_layer(x, self.layers[index], self.config, own, kv, self._steps)

    def _compile(self) -> CompiledStack:
        compiled: CompiledStack = extension.extension().CompiledStack(self.config)
        for layer in self.layers:
            compiled.add_layer(layer)
        return compiled
