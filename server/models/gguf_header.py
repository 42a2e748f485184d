"""A GGUF file's metadata and tensor table, read in a fifth of a second.

The `gguf` package's reader makes several numpy views per array element, two seconds for a
vocabulary of 49,152 tokens; this reader keeps all of it and only takes arrays in one piece.
No torch: the tokenizer lives in the same metadata. Source: the GGUF specification, version 3.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, ReaderTensor

from plait.server.models.catalog import MALFORMED, BadModel


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A memory-mapped GGUF file."""

    metadata: Mapping[str, Any]  # scalars, strings and lists of them, by their full key
    tensors: Mapping[str, ReaderTensor]  # .data is a view of the file, rows first


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file and map its tensors.

    Raises:
        BadModel: the file is cut off or is not GGUF version 2 or 3.
    Cost: about 0.2 s for a vocabulary of 49,152 tokens; the tensors are not touched.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # numpy's: sizes that overflow
            reader = _Reader(path)
            metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (*MALFORMED, struct.error, RuntimeWarning) as error:
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadModel(
            f"{path} is damaged or not a whole GGUF file; download or convert it again: {told}"
        ) from error
    return GgufFile(metadata, {tensor.name: tensor for tensor in reader.tensors})


class _Reader(GGUFReader):
    """Overrides how arrays are cut up; a test compares the result with the original's."""

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        item_type, count = struct.unpack_from("=IQ", self.data.data, orig_offs)
        start = orig_offs + 12
        types = [GGUFValueType.ARRAY, GGUFValueType(item_type)]
        if item_type == GGUFValueType.STRING:
            strings, end = _strings(self.data.data, start, count)
            return end - orig_offs, strings, list(range(count)), types
        scalar = self.gguf_scalar_to_np.get(GGUFValueType(item_type))
        if scalar is None:
            raise ValueError("arrays of arrays are not supported")
        values = self._get(start, scalar, count)
        if len(values) != count:
            raise ValueError("an array runs past the end of the file")
        return 12 + values.nbytes, [values], [0], types


def _strings(data: memoryview[Any], start: int, count: int) -> tuple[list[memoryview[Any]], int]:
    """Return `count` length-prefixed strings from byte `start` on, and where they end."""
    strings = []
    for _ in range(count):
        (length,) = struct.unpack_from("=Q", data, start)
        start += 8 + length
        if start > len(data):
            raise ValueError("a string runs past the end of the file")
        strings.append(data[start - length : start])
    return strings, start
