"""What a request may ask of a diffusion model, and what it gets by default."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.contract.registry import Choice, MethodError, methods
from plait.decoders.diffusion.pipeline import UnmaskingConfig, build_pipeline, check
from plait.decoders.diffusion.spec import DiffusionSpec

BLOCKS = DiffusionSpec(99, (1,), "block", 4, (1, 4, 8, 16, 32))
BOTH = DiffusionSpec(99, (1,), "block", 4, (1, 4, 8, 16, 32), also_full=True)
FULL = DiffusionSpec(99, (1,), "full", 32)
SHIFTED = DiffusionSpec(99, (1,), "block", 32, shift=True)


def without_extras(
    decoding: dict[str, Any], spec: DiffusionSpec
) -> tuple[dict[str, Any], DiffusionSpec, PromptExtras]:
    """Return the arguments of `check`, which takes what a prompt comes with by itself."""
    extras = {name: decoding[name] for name in ("suffix_token_ids", "holes") if name in decoding}
    rest = {name: value for name, value in decoding.items() if name not in extras}
    return rest, spec, PromptExtras(**extras)


@pytest.mark.parametrize(
    ("decoding", "spec", "want"),
    [
        ({}, BLOCKS, (["static", "free-dave"], "block", 4)),
        ({"unmasker": "auto"}, FULL, (["static", "free-dave"], "full", 32)),
        ({"unmasker": "off"}, BLOCKS, (["static"], "block", 1)),
        ({"unmasker": "off", "canvas": {"block_size": 1}}, BLOCKS, (["static"], "block", 1)),
        ({"unmasker": "off"}, FULL, (["static"], "full", 1)),
        ({"unmasker": "threshold"}, BLOCKS, (["threshold"], "block", 4)),
        ({"unmasker": ["credit", "threshold"]}, BLOCKS, (["credit", "threshold"], "block", 4)),
        ({"unmasker": "free-dave"}, BLOCKS, (["static", "free-dave"], "block", 4)),
        ({"canvas": {"block_size": 16}}, BLOCKS, (["static", "free-dave"], "block", 16)),
        ({"canvas": {"attention": "full"}}, BOTH, (["static", "free-dave"], "full", 4)),
        ({"canvas": {"attention": "full", "block_size": 7}}, BOTH, (None, "full", 7)),
        ({"suffix_token_ids": [5]}, BOTH, (None, "full", 4)),
        ({"holes": [(1, 2)]}, BOTH, (None, "full", 4)),
        ({"suffix_token_ids": []}, BLOCKS, (None, "block", 4)),
        ({"unmasker": ["static", "dual-cache"]}, FULL, (["static", "dual-cache"], "full", 32)),
    ],
)
def test_recipes(
    decoding: dict[str, Any], spec: DiffusionSpec, want: tuple[list[str] | None, str, int]
) -> None:
    recipe = check(*without_extras(decoding, spec))
    names, attention, block_size = want
    assert names is None or [choice.method.name for choice in recipe.choices] == names
    assert (recipe.attention, recipe.block_size) == (attention, block_size)
    chain = build_pipeline(recipe, spec, delimiters=lambda: (3,))
    assert chain.selector is not None
    assert set(chain.names.values()) == {choice.method.name for choice in recipe.choices}


@pytest.mark.parametrize(
    ("decoding", "spec", "param", "message"),
    [
        ({"unmasker": "nonesuch"}, BLOCKS, "unmasker", "no unmasker 'nonesuch'"),
        ({"unmasker": ["static", "threshold"]}, BLOCKS, "unmasker.1", "both decide the selector"),
        ({"unmasker": {"name": "threshold", "x": 1}}, BLOCKS, "unmasker.x", "threshold"),
        ({"unmasker": "dual-cache"}, BLOCKS, "unmasker", "full attention"),
        ({"unmasker": ["free-dave", "recap"]}, FULL, "unmasker.1", "can't be composed"),
        ({"unmasker": ["wino", "free-dave"]}, BLOCKS, "unmasker.1", "can't be composed"),
        ({"unmasker": ["wino", "scaffold"]}, BLOCKS, "unmasker.1", "can't be composed"),
        ({"unmasker": [{"name": "scaffold", "bar": 2}]}, BLOCKS, "unmasker.0.bar", "scaffold"),
        ({"canvas": {"colour": 1}}, BLOCKS, "canvas.colour", "no 'colour'"),
        ({"canvas": {"attention": "odd"}}, BLOCKS, "canvas.attention", "block, full"),
        ({"canvas": {"attention": "full"}}, BLOCKS, "canvas.attention", "block attention only"),
        ({"canvas": {"attention": "block"}}, FULL, "canvas.attention", "full attention only"),
        ({"canvas": {"block_size": 12}}, BLOCKS, "canvas.block_size", "1, 4, 8, 16, 32, not 12"),
        ({"canvas": {"block_size": 0}}, FULL, "canvas.block_size", "at least 1"),
        ({"canvas": {"block_size": True}}, FULL, "canvas.block_size", "whole number"),
        ({"canvas": {"block_size": "4"}}, FULL, "canvas.block_size", "whole number"),
        (
            {"unmasker": "off", "canvas": {"block_size": 4}},
            BLOCKS,
            "canvas.block_size",
            "block size is 1",
        ),
        ({"suffix_token_ids": [1]}, BLOCKS, "suffix", "not trained for"),
        ({"holes": [(0, 1)]}, BLOCKS, "infill", "not trained for"),
        (
            {"holes": [(0, 1)], "canvas": {"attention": "block"}},
            BOTH,
            "canvas.attention",
            "request excludes",
        ),
    ],
)
def test_what_can_not_be_is_refused_by_name(
    decoding: dict[str, Any], spec: DiffusionSpec, param: str, message: str
) -> None:
    with pytest.raises(MethodError) as caught:
        check(*without_extras(decoding, spec))
    assert caught.value.param == (param if param in ("suffix", "infill") else f"decoding.{param}")
    assert message in str(caught.value)


def test_odd_block_sizes_fill_no_pages() -> None:
    odd = DiffusionSpec(99, (1,), "block", 12)
    with pytest.raises(MethodError, match="divides 16"):
        check({}, odd)


def test_shadows_need_rows_that_predict_themselves() -> None:
    with pytest.raises(MethodError, match="shadow"):
        build_pipeline(check({"unmasker": "wino"}, SHIFTED), SHIFTED)


def test_a_front_end_checks_without_torch() -> None:
    code = (
        "import sys; from plait.decoders.diffusion.pipeline import check;"
        "from plait.decoders.diffusion.spec import DiffusionSpec;"
        "check({}, DiffusionSpec(9, (), 'full', 4)); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_scaffold_stands_beside_nothing_that_opens_tokens_again() -> None:
    """Also where nobody has said so by name, as a package's own selector might forget to."""
    known = methods()
    choices = tuple(
        Choice(known["unmasker", name], known["unmasker", name].options())
        for name in ("wino", "scaffold")
    )
    with pytest.raises(MethodError, match="without end"):
        build_pipeline(UnmaskingConfig(choices, "block", 4), BLOCKS)
