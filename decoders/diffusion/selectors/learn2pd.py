"""Learn2PD: a small trained filter predicts which tokens are final already.

The filter reads the highest probability of every row of the block, masked or not, and returns for
each position the probability that its token is final. Law: the masked positions to which the filter
gives more than `threshold`, and the k most confident ones. A filter that rejects everything is
static decoding; one that knows the result of static decoding gives that result in the fewest steps.

Source: Learn2PD, arXiv:2509.25188, section 3. Its filter, 32 -> 32 -> 32 with a ReLU between, is
read from learn2pd.safetensors beside the weights: tensors block<B>.0.weight [n, B], block<B>.0.bias
[n], block<B>.2.weight [B, n] and so on, for blocks of B. Differences: there may be more layers (the
tiny model's filter has three); a shorter block is read as one whose remaining positions are
unmasked with probability 1; confidence is always the greatest p, also where the paper's runs on
Dream use the entropy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file

from plait.decoders.contract.registry import Method, MethodError, Options
from plait.decoders.diffusion.protocols import ByProbability, Floats, Selection, StepView, top_k

FILE = "learn2pd.safetensors"
PARAM = "decoding.unmasker"
Layer = tuple[Floats, Floats]  # weight [out, in], bias [out]
Filters = Mapping[int, Sequence[Layer]]  # by block size


class Learn2pdOptions(Options):
    """The threshold of the filter, and the least number of positions per step."""

    threshold: float = Field(default=0.96, ge=0.0, le=1.0)
    tokens_per_step: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class Learn2pd(ByProbability[Learn2pdOptions]):
    """Unmasks what the filter predicts to be final."""

    filters: Filters = field(repr=False)

    @property
    def needs(self) -> frozenset[str]:
        """The probabilities of the whole block."""
        return frozenset({"block_p"})

    def select(self, view: StepView, memory: Any) -> Selection:
        """Select what the filter accepts, and the k most confident."""
        accepted = self._accept(view)[view.positions - view.start] > self.options.threshold
        return Selection(accepted | top_k(view.p, self.options.tokens_per_step))

    def _accept(self, view: StepView) -> Floats:
        """Return the filter's probability for each of the block's positions."""
        assert view.block_p is not None
        length = view.stop - view.start
        size = min((size for size in self.filters if size >= length), default=0)
        if size == 0:  # no filter was trained for blocks this long
            return np.zeros(length)
        x = np.pad(view.block_p, (0, size - length), constant_values=1.0)
        *hidden, (weight, bias) = self.filters[size]
        for inner_weight, inner_bias in hidden:
            x = np.maximum(inner_weight @ x + inner_bias, 0.0)
        logits: Floats = weight @ x + bias
        return 1.0 / (1.0 + np.exp(-np.clip(logits, -50.0, 50.0)))[:length]


@lru_cache(maxsize=8)
def load_filters(path: Path) -> Filters:
    """Return the filters of a file, by block size."""
    return read_filters(load_file(path))


def read_filters(tensors: Mapping[str, NDArray[Any]]) -> Filters:
    """Return the filters in a set of tensors, by block size, layers in order of their numbers.

    Raises:
        ValueError: a filter's layers don't fit each other or its block size.
    """
    found: dict[int, dict[int, Layer]] = {}
    for name in sorted(tensors):
        block, number, what = name.split(".")
        if what == "weight":
            weight, bias = tensors[name], tensors[f"{block}.{number}.bias"]
            size = int(block.removeprefix("block"))
            layer = weight.astype(np.float64), bias.astype(np.float64)
            found.setdefault(size, {})[int(number)] = layer
    filters = {size: [by[number] for number in sorted(by)] for size, by in found.items()}
    for size, layers in filters.items():
        widths = [size, *(len(bias) for _, bias in layers)]
        shapes = [weight.shape for weight, _ in layers]
        if widths[-1] != size or shapes != [(out, into) for into, out in pairwise(widths)]:
            raise ValueError(f"the filter for blocks of {size} has layers of shapes {shapes}")
    return filters


def make(
    options: Learn2pdOptions,
    *,
    folder: Path | None = None,
    block_size: int | None = None,
    **context: Any,
) -> Learn2pd:
    """Return the selector with the filters that are stored beside the weights.

    Raises:
        MethodError: there are none, or none for the request's block.
    """
    path = None if folder is None else folder / FILE
    if path is None or not path.is_file():
        raise MethodError(f"learn2pd needs a filter, and this model has no {FILE}.", PARAM)
    filters = load_filters(path)
    if block_size is not None and block_size not in filters:
        sizes = ", ".join(map(str, sorted(filters)))
        raise MethodError(f"learn2pd has filters for blocks of {sizes}, not {block_size}.", PARAM)
    return Learn2pd(options, filters)


METHOD = Method(
    kind="unmasker",
    part="selector",
    name="learn2pd",
    summary="Unmasks positions whose tokens a small trained filter predicts to be final.",
    source="Learn2PD, arXiv:2509.25188, section 3",
    target="plait.decoders.diffusion.selectors.learn2pd:make",
    options=Learn2pdOptions,
    needs=frozenset({"canvas"}),
    presets={"llada": {"threshold": 0.96}, "dream": {"threshold": 0.9}},
)
