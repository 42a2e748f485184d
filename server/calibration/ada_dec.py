"""`plait calibrate ada-dec`: the threshold of ada-dec for a model, on texts with true answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg

from plait.server.models.catalog import BadModel
from plait.server.settings import WeightMode

if TYPE_CHECKING:
    from plait.server.calibration.threshold import EntropyThreshold
    from plait.server.engine.runner import Runner

ROWS = 512  # of a forward pass


class Example(msgspec.Struct, frozen=True):
    """One line of the data."""

    prompt: str
    completion: str


class AdaDecCalibration(BaseSettings):
    """Measure ada-dec's threshold tau for a model."""

    model: CliPositionalArg[str] = Field(
        description="A built-in name, a GGUF file or a Hugging Face folder."
    )
    data: Path = Field(
        description='JSON lines {"prompt": ..., "completion": ...}: tasks as the model gets them, '
        "with right answers."
    )
    weights: WeightMode = Field("auto", description="How the weights are held.")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, ...")
    threads: int = Field(0, ge=0, le=1024, description="0: one a core.")

    def run(self) -> int:
        """Print the threshold and how to use it; return the exit code."""
        try:
            found = calibrate(self)
        except BadModel as error:
            raise ValueError(str(error)) from error
        share = f"{100 * found.accuracy:.1f} %"
        sys.stdout.write(
            f"tau {found.tau:.3f}\n\n"
            f"Up to this entropy in nats the likeliest token is right with a probability of "
            f"{found.probability:.2f} or more.\n"
            f"It tells {share} of held-out tokens apart, of {found.num_tokens} that were right "
            "and wrong in equal parts.\n\n"
            "Use it in a request:\n"
            f'    "decoding": {{"search": {{"name": "ada-dec", "tau": {found.tau:.3f}}}}}\n'
        )
        return 0


def calibrate(options: AdaDecCalibration) -> EntropyThreshold:
    """Return the threshold. Cost: one pass over the texts.

    Raises:
        BadModel: the model can't be loaded, or does not write one token after the other.
        ValueError: the data is no such file, or says too little.
    """
    examples = read_examples(options.data)
    # Torch takes a second to import; the other commands don't need it.
    import numpy as np  # noqa: PLC0415

    from plait.server.calibration.threshold import fit_threshold  # noqa: PLC0415
    from plait.server.engine.kv.block_table import num_blocks_for  # noqa: PLC0415
    from plait.server.engine.runner import Runner  # noqa: PLC0415
    from plait.server.models.catalog import resolve  # noqa: PLC0415
    from plait.server.models.load import load_model  # noqa: PLC0415
    from plait.server.prompt.tokenizer import load_tokenizer  # noqa: PLC0415

    files = resolve(options.model)
    tokenizer = load_tokenizer(files)
    model = load_model(
        files, weights=options.weights, device=options.device, threads=options.threads
    )
    if model.diffusion is not None:
        raise BadModel("ada-dec is for models that write one token after the other.")
    texts = [
        (tokenizer.encode(each.prompt, special=True), tokenizer.encode_inside(each.completion))
        for each in examples
    ]
    longest = max(len(prompt) + len(answer) for prompt, answer in texts)
    if longest > model.max_positions:
        raise ValueError(f"a text has {longest} tokens, the model's context {model.max_positions}")
    runner = Runner(model, model.new_kv_cache(num_blocks_for(longest)), model.backend)
    measured = [each for text in texts for each in measure_answer(runner, *text)]
    entropies = np.array([entropy for entropy, _ in measured])
    return fit_threshold(entropies, np.array([is_first for _, is_first in measured]))


def read_examples(path: Path) -> list[Example]:
    """Return the examples of a file; raise ValueError with the line that is none."""
    examples = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            examples.append(msgspec.json.decode(line, type=Example))
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not examples:
        raise ValueError(f"{path} has no examples")
    return examples


def measure_answer(
    runner: Runner, prompt: Sequence[int], answer: Sequence[int]
) -> Iterator[tuple[float, bool]]:
    """Yield for each token of the answer the entropy (nats), and whether it was the likeliest."""
    from plait.kernels.paged_attention import AttentionSegment  # noqa: PLC0415
    from plait.server.engine.forward_batch import (  # noqa: PLC0415
        SequenceInput,
        build_forward_batch,
    )
    from plait.server.engine.kv.block_table import num_blocks_for  # noqa: PLC0415

    text = [*prompt, *answer]
    blocks = range(num_blocks_for(len(text)))
    for start in range(0, len(text) - 1, ROWS):
        fed = text[start : min(start + ROWS, len(text) - 1)]
        read = range(max(len(prompt) - 1 - start, 0), len(fed))
        batch = build_forward_batch(
            [SequenceInput([AttentionSegment(fed, start, blocks)], read)], runner.backend
        )
        forward = runner.logits(batch, runner.forward(batch))
        if not read:
            continue
        stats = runner.backend.row_stats(forward.logits)
        best, entropies = stats.top_ids[:, 0].tolist(), stats.entropy.tolist()
        for row, token, entropy in zip(read, best, entropies, strict=True):
            yield entropy, token == text[start + row + 1]
