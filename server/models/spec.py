"""The description of a decoder-only transformer: everything its forward pass depends on.

One description covers Llama, Mistral, Qwen2, Qwen3, SmolLM2 and SmolLM3: pre-norm blocks of grouped
attention and a gated SiLU feed-forward, RMS norms, rotate-half rotary positions; and the same
blocks with routed experts, as LLaDA2 has them. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from plait.server.models.catalog import BadModel

MAX_LAYERS = 4096  # of a corrupt file more could be said, and would be allocated
MAX_SIZE = 2**22  # of rows and columns
MAX_POSITIONS = 2**24

RopeKind = Literal["default", "linear", "llama3", "yarn", "factors"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions: pair p of the first `dim` dimensions turns by position * frequency[p].

    The unscaled frequency is theta ** (-2p / dim); `kind` says how it is stretched (rope.py).
    """

    theta: float
    dim: int  # rotated dimensions of a head; the rest passes through
    kind: RopeKind = "default"
    factor: float = 1.0  # how many times longer the context became
    original_positions: int = 0  # context before it was stretched: llama3, yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: ramp between whole dimensions
    attention_factor: float = 1.0  # yarn: scales cosines and sines
    factors: tuple[float, ...] = ()  # factors: divisor of each frequency

    def __post_init__(self) -> None:
        """Refuse numbers that give no angles.

        Raises:
            BadModel: naming them.
        """
        positive = {"theta": self.theta, "factor": self.factor}
        if self.kind == "yarn":
            positive |= {"beta_fast": self.beta_fast, "beta_slow": self.beta_slow}
            positive |= {"attention_factor": self.attention_factor}
        if self.kind in ("yarn", "llama3"):
            positive |= {"original context": self.original_positions}
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise BadModel(f"rope: {name} must be a positive number, not {value!r}")
        if not all(0 < abs(factor) < math.inf for factor in self.factors):
            raise BadModel("rope: a factor is zero, infinite or NaN")
        if self.kind == "yarn" and self.theta <= 1:
            raise BadModel(f"rope: theta must be above 1, not {self.theta!r}")
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor < math.inf:
            raise BadModel("rope: low_freq_factor must be below high_freq_factor")

    def max_positions(self, stated: int) -> int:
        """Return the longest context; YaRN files often state the one before stretching."""
        stretched = self.original_positions * self.factor if self.kind == "yarn" else 0
        return max(stated, int(stretched))


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """Return by how much YaRN sharpens attention. Source: arXiv:2309.00071, section 3.4."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A feed-forward of many small ones: each row takes those that its router scores best."""

    count: int
    chosen: int  # per row
    ffn: int  # of one expert
    shared_ffn: int  # of the one that all rows take
    first_layer: int  # layers below it have a plain feed-forward
    groups: int = 1
    kept_groups: int = 1
    scale: float = 1.0
    normalised: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        """Refuse a choice that can't be made.

        Raises:
            BadModel: naming the numbers.
        """
        if not 0 < self.count <= MAX_LAYERS:
            raise BadModel(f"{self.count} experts are not supported")
        if self.groups < 1 or self.count % self.groups:
            raise BadModel(f"{self.count} experts do not make {self.groups} equal groups")
        choice = self.count // self.groups * self.kept_groups
        if not 0 < self.kept_groups <= self.groups or not 0 < self.chosen <= choice:
            raise BadModel(f"a row cannot choose {self.chosen} of {choice} experts")
        if self.shared_ffn < 1:
            raise BadModel("experts without a shared one are not supported")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shapes, switches and constants of one model."""

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    norm_eps: float
    max_positions: int
    rope: RopeSpec
    windows: tuple[int, ...]  # [layers] sliding window in tokens, 0: sees everything before it
    rotary: tuple[bool, ...]  # [layers] False: the layer knows no positions (SmolLM3)
    qk_norm: bool = False  # RMS norm of every query and key head
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied_embeddings: bool = False
    experts: MoeSpec | None = None

    def experts_of(self, layer: int) -> MoeSpec | None:
        """Return what a layer routes to; None: its feed-forward is plain."""
        return self.experts if self.experts and layer >= self.experts.first_layer else None

    def __post_init__(self) -> None:
        """Refuse shapes that no forward pass can have.

        Raises:
            BadModel: naming the field.
        """
        sizes = ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn")
        most = {"max_positions": MAX_POSITIONS, "layers": MAX_LAYERS}
        for name in (*sizes, "max_positions"):
            value, limit = getattr(self, name), most.get(name, MAX_SIZE)
            if not isinstance(value, int) or value <= 0:
                raise BadModel(f"{name} must be positive, not {value!r}")
            if value > limit:
                raise BadModel(f"{name} is {value}; more than {limit} is not supported")
        if not 0 <= self.norm_eps < 1:
            raise BadModel(f"norm_eps must be a small number, not {self.norm_eps!r}")
        if self.heads % self.kv_heads:
            raise BadModel(f"{self.heads} heads cannot share {self.kv_heads} key-value heads")
        if self.rope.dim % 2 or not 0 < self.rope.dim <= self.head_dim:
            raise BadModel(f"rotary dimensions must be even and at most {self.head_dim}")
        if self.rope.kind == "factors" and len(self.rope.factors) != self.rope.dim // 2:
            raise BadModel(f"{len(self.rope.factors)} rope factors for {self.rope.dim} dimensions")
        if len(self.windows) != self.layers or len(self.rotary) != self.layers:
            raise BadModel("windows and rotary need one entry per layer")
