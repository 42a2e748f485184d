"""The served model's hidden states of every answer, kept once: what heads are trained on.

Of each text the rows from the prompt's last token on, which are those that a server hands over.

    python -m benchmarks.drafter_heads.features DATA FOLDER
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.drafter_heads.data import MODEL, Text, read_part
from benchmarks.drafter_heads.frozen import Reader
from plait.server.models.catalog import resolve

LONGEST = 448  # tokens of a text


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, its rows and the last row of its prompt."""

    tokens: NDArray[np.int64]  # [rows + 2] from two before the prompt's last one on
    hidden: NDArray[np.float16]  # [rows, hidden]; row i follows token i + 2
    start: int  # position of row 0 in the text

    @property
    def rows(self) -> int:
        """Rows of hidden states."""
        return len(self.hidden)


def load_answers(data: Path, folder: Path, name: str = "train") -> list[Answer]:
    """Return the answers whose hidden states have been written, in order."""
    answers: list[Answer] = []
    for path in sorted(folder.glob(f"{name}-*.npy")):
        hidden = np.load(path)
        done = 0
        for text in read_part(data / f"{path.stem}.npz"):
            start, stop = text.prompt - 1, min(len(text.tokens), LONGEST)
            rows = hidden[done : done + stop - start]
            done += stop - start
            if start >= 2 and len(rows) > 2:
                answers.append(Answer(text.tokens[start - 2 : stop], rows, start))
    return answers


def write(reader: Reader, texts: list[Text], path: Path) -> None:
    """Write the hidden states of a part's answers, one after the other, [rows, hidden] fp16."""
    parts = []
    for text in texts:
        hidden = reader.read(text.tokens[:LONGEST].tolist()).hidden[text.prompt - 1 :]
        parts.append(hidden.half().numpy())
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.save(file, np.concatenate(parts))
    temporary.replace(path)


def main() -> None:
    """Read the command line and write what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    reader: Reader | None = None
    for source in sorted(args.data.glob("*-*.npz")):
        path = args.folder / f"{source.stem}.npy"
        if not path.exists() and ".part" not in source.name:
            reader = reader or Reader(resolve(MODEL))
            write(reader, read_part(source), path)
            print(path.name, flush=True)


if __name__ == "__main__":
    main()
