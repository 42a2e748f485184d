"""The model: embedding, decoder layers, final norm and head, over a paged KV cache.

It holds no request state: which tokens a row sees is in the attention metadata of the call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plait.decoders.diffusion.spec import DiffusionSpec
from plait.kernels.backend import KernelBackend
from plait.kernels.decoder_stack import LayerWeights, StackConfig
from plait.kernels.kv_cache import KVCache, KVCacheShape
from plait.kernels.linear import Mode, Weight
from plait.kernels.paged_attention import AttentionMetadata
from plait.server.models.catalog import BadModel
from plait.server.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class TiedEmbedding:
    """The rows of a head as embeddings, which take no memory of their own."""

    head: Weight
    dtype: torch.dtype  # to which they are rounded
    backend: KernelBackend

    def __getitem__(self, token_ids: Tensor) -> Tensor:
        """Return [*token_ids, hidden] fp32."""
        rows = self.backend.take_rows(self.head, token_ids.flatten(), self.dtype)
        return rows.view(*token_ids.shape, self.head.k)


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Every tensor of a model, on one device."""

    embedding: Tensor | TiedEmbedding  # [vocab, hidden] fp32 or bf16
    layers: Sequence[LayerWeights]
    final_norm: Tensor  # [hidden] fp32
    lm_head: Weight  # [vocab, hidden]
    cos: Tensor  # [max_positions, rotary dims / 2] fp32
    sin: Tensor


class Transformer:
    """A decoder-only transformer, ready to run; one call at a time.

    Law: on the compiled path a row's hidden state and logits have the same bits whatever the rest
    of the batch is and however its prompt was cut into calls.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        backend: KernelBackend,
        *,
        mode: Mode,
        fingerprint: str,
        diffusion: DiffusionSpec | None = None,
    ) -> None:
        self.spec = spec
        self.diffusion = diffusion  # how it unmasks; None: an autoregressive model
        self.mode = mode  # of most linear layers; outside fp32 the cache is bf16
        self.fingerprint = fingerprint
        self.max_positions = weights.cos.shape[0]
        self._weights = weights
        self.backend = backend
        self._stack = backend.decoder_stack(weights.layers, _stack_config(spec, weights))
        self._inputs: Tensor | None = None  # [n, hidden] fp32, beyond the vocabulary

    def extend(self, inputs: Tensor) -> None:
        """Let ids from vocab_size on stand for inputs of their own; the logits stay as they are.

        Args:
            inputs: [n, hidden], in place of embeddings.
        """
        if inputs.dim() != 2 or inputs.shape[1] != self.spec.hidden:
            raise ValueError(f"inputs are {tuple(inputs.shape)}, not [n, {self.spec.hidden}]")
        self._inputs = inputs.to(self.backend.device, torch.float32)

    def with_layers(self, kept: Sequence[int]) -> Transformer:
        """Return the model without the other layers; it shares this one's memory."""
        spec, weights = self.spec, self._weights
        return Transformer(
            replace(
                spec,
                layers=len(kept),
                windows=tuple(spec.windows[layer] for layer in kept),
                rotary=tuple(spec.rotary[layer] for layer in kept),
            ),
            replace(weights, layers=[weights.layers[layer] for layer in kept]),
            self.backend,
            mode=self.mode,
            fingerprint=self.fingerprint,
            diffusion=self.diffusion,
        )

    def forward(
        self,
        token_ids: Tensor,
        metadata: AttentionMetadata,
        kv: KVCache,
        read: Tensor | None = None,
    ) -> Tensor:
        """Run rows through the model and write their keys and values into the cache.

        Args:
            token_ids: [rows] int64, of the vocabulary or of `extend`.
            segments: which rows belong together, what they see and where their KV goes; positions
                below max_positions.
            read: [n] int64, the rows that are read of what is returned, all unless given; the
                others may hold anything.
        Returns:
            [rows, hidden] fp32 after the final norm: what `logits` takes.
        """
        return self._run(self._embed(token_ids), metadata, kv, read)

    def superpose(
        self, token_ids: Tensor, weights: Tensor, metadata: AttentionMetadata, kv: KVCache
    ) -> Tensor:
        """Run rows whose input is a weighted sum of tokens; else as `forward`.

        Args:
            token_ids: [rows, k] int64.
            weights: [rows, k] float32.
        """
        x = self._embed(token_ids.flatten()).view(*token_ids.shape, -1)
        return self._run((weights[:, :, None] * x).sum(dim=1), metadata, kv)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return [rows, vocab] fp32 for chosen rows of what forward returned.

        A diffusion model's mask token, which stands where a token is missing, gets -inf.
        """
        logits = self.backend.linear(hidden, self._weights.lm_head)
        if self.diffusion is not None:
            logits[:, self.diffusion.mask_id] = -math.inf
        return logits

    def new_kv_cache(self, num_blocks: int) -> KVCache:
        """Return an empty cache; its memory is taken page by page as blocks are first written.

        Raises:
            BadModel: there is no such amount of memory.
        """
        try:
            return self.backend.new_kv_cache(self._kv_cache_shape, num_blocks)
        except (OSError, OverflowError, RuntimeError, MemoryError) as error:
            raise BadModel(
                f"a KV cache of {num_blocks * self.kv_block_bytes} bytes can't be had on "
                f"{self.backend.device}: give fewer kv_cache_bytes or draft_kv_cache_bytes "
                f"({error})"
            ) from error

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.spec.vocab

    @property
    def embedding(self) -> Tensor | TiedEmbedding:
        """The vocabulary's embeddings [vocab, hidden], to be read by rows; not to be modified."""
        return self._weights.embedding

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of one cache block over all layers, keys and values."""
        return self._kv_cache_shape.block_bytes

    def _run(
        self, x: Tensor, metadata: AttentionMetadata, kv: KVCache, read: Tensor | None = None
    ) -> Tensor:
        """Run inputs [rows, hidden] fp32, which are overwritten, through the model."""
        self._stack.forward(x, metadata, kv, read=read)
        return self.backend.rms_norm(x, self._weights.final_norm, self.spec.norm_eps)

    def _embed(self, token_ids: Tensor) -> Tensor:
        """Return [rows, hidden] fp32."""
        if self._inputs is None:
            return self._weights.embedding[token_ids].float()
        x = self._weights.embedding[token_ids.clamp(max=self.spec.vocab - 1)].float()
        beyond = token_ids >= self.spec.vocab
        x[beyond] = self._inputs[token_ids[beyond] - self.spec.vocab]
        return x

    @property
    def _kv_cache_shape(self) -> KVCacheShape:
        spec = self.spec
        dtype = torch.float32 if self.mode == "fp32" else torch.bfloat16
        return KVCacheShape(spec.layers, spec.kv_heads, spec.head_dim, dtype)


def _stack_config(spec: ModelSpec, weights: ModelWeights) -> StackConfig:
    return StackConfig(
        hidden=spec.hidden,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        ffn=spec.ffn,
        norm_eps=spec.norm_eps,
        scale=spec.head_dim**-0.5,
        cos=weights.cos,
        sin=weights.sin,
    )
