"""From a checkpoint to the file that plait serves with.

python -m benchmarks.drafter_heads.export ppd DATA CHECKPOINT server/models/drafter_heads/MODEL
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.drafter_heads.data import MODEL, load
from benchmarks.drafter_heads.frozen import FrozenRows, Reader
from benchmarks.drafter_heads.measure import ppd_accuracy
from benchmarks.drafter_heads.train_head import ROUNDS, WINDOW
from plait.kernels.linear import from_dense
from plait.server.models.catalog import resolve
from plait.server.models.heads import belongs_to
from plait.server.models.spec import ModelSpec

MEASURED = 32  # texts, the last ones, on which A is measured


def ppd_tensors(state: dict[str, Any], data: Path) -> dict[str, Tensor]:
    """Return the embeddings, and how good their guesses are on texts that were not trained on."""
    files = resolve(MODEL)
    texts = load(data)[state["step"] :][-MEASURED:]
    reader, rows = Reader(files), FrozenRows(files)
    greedy, sampled = ppd_accuracy(reader, rows, state["embeddings"], texts)
    return {
        "embeddings": state["embeddings"].contiguous(),
        "accuracy": torch.from_numpy(greedy).float(),
        "accuracy_sampled": torch.from_numpy(sampled).float(),
    }


def head_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Return the head's matrices in int8 with their scales, the rest as it is."""
    found: dict[str, Tensor] = {"draft_ids": state["draft_ids"].int()}
    tensors = named(state["head"])
    tensors.pop(f"mixes.{ROUNDS}", None)  # was fitted, but never trained; the one before serves
    for name, value in tensors.items():
        if value.dim() != 2:
            found[name] = value
            continue
        weight = from_dense(value, "int8")
        assert weight.scale is not None, "int8 has scales"
        found[name], found[f"{name}.scale"] = weight.values, weight.scale
    return found


def named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a head's tensors by the names that it is served with (heads/layer.py, nets.py)."""
    found = {name.replace("layer.parts.", "layer."): v.clone() for name, v in state.items()}
    for step, mix in enumerate(found.pop("mixes", ())):
        found[f"mixes.{step}"] = mix.contiguous()
    return found


def layer_shape(spec: ModelSpec) -> dict[str, Any]:
    """Return what tensors don't say of the head's layer (heads/layer.py, LayerShape)."""
    return {
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "norm_eps": spec.norm_eps,
        "theta": spec.rope.theta,
        "max_positions": spec.max_positions,
        "window": WINDOW,
    }


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=("ppd", "eagle", "chimera"))
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = resolve(MODEL)
    state = torch.load(args.checkpoint)
    tensors = ppd_tensors(state, args.data) if args.name == "ppd" else head_tensors(state)
    metadata = {"weights": belongs_to(files), "model": MODEL, "steps": str(state["step"])}
    if args.name != "ppd":
        metadata["shape"] = json.dumps(layer_shape(FrozenRows(files).spec))
    args.folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.folder / f"{args.name}.safetensors", metadata)
    for name, tensor in tensors.items():
        print(name, tuple(tensor.shape), tensor.dtype)


if __name__ == "__main__":
    main()
