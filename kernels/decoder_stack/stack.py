"""The decoder layers of a model: prepared once, then called for every forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from plait.kernels import extension
from plait.kernels.decoder_stack.layers import LayerWeights, StackConfig
from plait.kernels.decoder_stack.reference import run_layer
from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import AttentionMetadata

if TYPE_CHECKING:
    from plait.kernels.backend import KernelBackend


class DecoderStack:
    """The layers of one model, run one by one with the operations of a backend."""

    def __init__(
        self, layers: Sequence[LayerWeights], config: StackConfig, backend: KernelBackend
    ) -> None:
        self.layers = tuple(layers)
        self.config = config
        self._backend = backend

    def forward(
        self,
        x: Tensor,
        metadata: AttentionMetadata,
        kv: KVCache,
        first_layer: int = 0,
        last_layer: int | None = None,
        read: Tensor | None = None,
    ) -> None:
        """Run x [rows, hidden] fp32 through layers first_layer .. last_layer - 1, in place.

        The rows' keys and values are written into the cache at their slots, then read with the
        rest. `read` [n] int64 names the rows whose output is wanted, all unless given: the others
        need not go through the rest of the last layer, and may hold anything afterwards. Law: on
        the compiled path every row has the same bits whatever the other rows are, and however a
        prompt is cut into calls.
        """
        for index in range(first_layer, len(self.layers) if last_layer is None else last_layer):
            kv_layer = kv.k[index], kv.v[index]
            own = metadata.at_layer(index)
            run_layer(x, self.layers[index], self.config, own, kv_layer, self._backend)


class CompiledDecoderStack(DecoderStack):
    """The layers of one model in one call of C++; every weight is packed, no layer has experts.

    It runs all layers in one parallel region and keeps its scratch memory from call to call. One
    call at a time.
    """

    def __init__(
        self, layers: Sequence[LayerWeights], config: StackConfig, backend: KernelBackend
    ) -> None:
        super().__init__(layers, config, backend)
        self._compiled = extension.load().CompiledStack(config)
        for layer in layers:
            self._compiled.add_layer(layer)

    def forward(
        self,
        x: Tensor,
        metadata: AttentionMetadata,
        kv: KVCache,
        first_layer: int = 0,
        last_layer: int | None = None,
        read: Tensor | None = None,
    ) -> None:
        """See DecoderStack."""
        last_layer = len(self.layers) if last_layer is None else last_layer
        self._compiled.forward(x, metadata, kv.k, kv.v, first_layer, last_layer, read)
