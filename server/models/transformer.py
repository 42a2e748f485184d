"""The model: embedding, decoder layers, final norm and head, over a paged KV cache.

It holds no request state. What a row sees is written in the segments of the call.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plait.decoders.diffusion.spec import DiffusionSpec
from plait.kernels.decoder_stack import DecoderStack, LayerWeights, StackConfig
from plait.kernels.elementwise import rms_norm
from plait.kernels.linear import Mode, Weight, linear
from plait.kernels.paged_attention import BLOCK_SIZE, AttentionMetadata
from plait.server.models.catalog import BadModel
from plait.server.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of all layers, in blocks of 16 tokens; fp32 in fp32 mode, else bf16."""

    k: Tensor  # [layers, num_blocks, kv_heads, head_dim, 16]
    v: Tensor  # [layers, num_blocks, kv_heads, 16, head_dim]


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Every tensor of a model, on one device."""

    embedding: Tensor  # [vocab, hidden] fp32 or bf16
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
        *,
        mode: Mode,
        fingerprint: str,
        diffusion: DiffusionSpec | None = None,
        backend: bool = False,
    ) -> None:
        self.spec = spec
        self.diffusion = diffusion  # how it fills holes; None: it writes token after token
        self.mode = mode  # of most linear layers; outside fp32 the cache is bf16
        self.fingerprint = fingerprint
        self.device = weights.embedding.device
        self.max_positions = weights.cos.shape[0]
        self._weights = weights
        self._backend = backend
        self._stack = DecoderStack(weights.layers, _stack_config(spec, weights))
        self._inputs: Tensor | None = None  # [n, hidden] fp32, beyond the vocabulary

    def extend(self, inputs: Tensor) -> None:
        """Let ids from vocab_size on stand for inputs of their own; the logits stay as they are.

        Args:
            inputs: [n, hidden], in place of embeddings.
        """
        if inputs.dim() != 2 or inputs.shape[1] != self.spec.hidden:
            raise ValueError(f"inputs are {tuple(inputs.shape)}, not [n, {self.spec.hidden}]")
        self._inputs = inputs.to(self.device, torch.float32)

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
            mode=self.mode,
            fingerprint=self.fingerprint,
            diffusion=self.diffusion,
            backend=self._backend,
        )

    def forward(self, token_ids: Tensor, metadata: AttentionMetadata, kv: KVCache) -> Tensor:
        """Run rows through the model and write their keys and values into the cache.

        Args:
            token_ids: [rows] int64, of the vocabulary or of `extend`.
            segments: which rows belong together, what they see and where their KV goes; positions
                below max_positions.
        Returns:
            [rows, hidden] fp32 after the final norm: what `logits` takes.
        """
        return self._run(self._embed(token_ids), metadata, kv)

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
        logits = linear(hidden, self._weights.lm_head, backend=self._backend)
        if self.diffusion is not None:
            logits[:, self.diffusion.mask_id] = -math.inf
        return logits

    def new_kv_cache(self, num_blocks: int) -> KVCache:
        """Return an empty cache; its memory is taken page by page as blocks are first written.

        Raises:
            BadModel: there is no such amount of memory.
        """
        spec = self.spec
        outer = (spec.layers, num_blocks, spec.kv_heads)
        try:
            keys = self._zeros(*outer, spec.head_dim, BLOCK_SIZE)
            return KVCache(keys, self._zeros(*outer, BLOCK_SIZE, spec.head_dim))
        except (OSError, OverflowError, RuntimeError, MemoryError) as error:
            raise BadModel(
                f"a KV cache of {num_blocks * self.kv_block_bytes} bytes can't be had on "
                f"{self.device}: give fewer kv_cache_bytes or draft_kv_cache_bytes ({error})"
            ) from error

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.spec.vocab

    @property
    def embedding(self) -> Tensor:
        """The vocabulary's embeddings, [vocab, hidden] fp32 or bf16; not to be modified."""
        return self._weights.embedding

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of one cache block over all layers, keys and values."""
        spec = self.spec
        return (
            2 * spec.layers * spec.kv_heads * spec.head_dim * BLOCK_SIZE * self._kv_dtype.itemsize
        )

    def _run(self, x: Tensor, metadata: AttentionMetadata, kv: KVCache) -> Tensor:
        """Run inputs [rows, hidden] fp32, which are overwritten, through the model."""
        self._stack.forward(x, metadata, kv.k, kv.v)
        return rms_norm(x, self._weights.final_norm, self.spec.norm_eps, backend=self._backend)

    def _embed(self, token_ids: Tensor) -> Tensor:
        """Return [rows, hidden] fp32."""
        if self._inputs is None:
            return self._weights.embedding[token_ids].float()
        x = self._weights.embedding[token_ids.clamp(max=self.spec.vocab - 1)].float()
        beyond = token_ids >= self.spec.vocab
        x[beyond] = self._inputs[token_ids[beyond] - self.spec.vocab]
        return x

    @property
    def _kv_dtype(self) -> torch.dtype:
        return torch.float32 if self.mode == "fp32" else torch.bfloat16

    def _zeros(self, *shape: int) -> Tensor:
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=self._kv_dtype, device=self.device)
        return untouched_zeros(shape, self._kv_dtype)


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros in memory that the system hands out page by page, when it is first written.

    torch.zeros would write, and so take, all of it.

    Raises:
        OSError: the system does not promise that much.
    """
    size = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


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
