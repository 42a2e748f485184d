"""The compile service's child: reads jobs from standard input, answers on standard output.

Started by server/pool/compiler.py as `python -P -m plait.server.pool.compile_worker`. Its address
space is capped; it ends when its input does. Messages are length-prefixed MessagePack.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar, cast

import msgspec

from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    content_key,
    vocabulary_fingerprint,
)
from plait.decoders.constrained.vocabulary import Vocabulary, make_vocabulary
from plait.server.models.catalog import ModelFiles
from plait.server.pool.compiler import (
    HEADER_BYTES,
    Answer,
    Boot,
    Done,
    Job,
    Model,
    Ready,
    Refused,
)
from plait.server.pool.messages import CompiledConstraint
from plait.server.prompt.tokenizer import load_tokenizer

NICENESS = 5  # generation goes first where cores are few
Message = TypeVar("Message", Boot, Job)


class Compiler:
    """The vocabularies of the served models, and the limits."""

    def __init__(self, boot: Boot) -> None:
        self._limits: ConstraintLimits = boot.limits
        self._vocabularies = {model.name: _load_vocabulary(model) for model in boot.models}
        self._fingerprints = {
            name: vocabulary_fingerprint(v.token_bytes, v.eos_token_ids)
            for name, v in self._vocabularies.items()
        }

    def run(self, job: Job) -> Done | Refused:
        """Compile one constraint.

        Cost: unbounded; the parent kills this process at the deadline.
        """
        try:
            done = compile_constraint(job.spec, self._vocabularies[job.model], self._limits)
        except ConstraintError as error:
            return Refused(str(error))
        except RecursionError:
            return Refused("it is nested too deeply")
        except MemoryError:
            return Refused("it does not compile within the memory limit")
        key = content_key(job.spec, self._limits, self._fingerprints[job.model])
        return Done(CompiledConstraint(key, done.compiled, done.grammar, done.min_tokens))


def _load_vocabulary(model: Model) -> Vocabulary:
    kind = cast(Literal["gguf", "hf"], model.kind)
    tokenizer = load_tokenizer(ModelFiles(kind, Path(model.path), model.name))
    vocabulary = make_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)
    vocabulary.prepare()
    return vocabulary


def cap_memory(extra_bytes: int) -> None:
    """Limit the address space to what the process has now and extra_bytes more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _read(stream: BinaryIO, message: type[Message]) -> Message | None:
    header = stream.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    return msgspec.msgpack.decode(stream.read(int.from_bytes(header, "little")), type=message)


def _write(stream: BinaryIO, answer: Answer) -> None:
    body = msgspec.msgpack.encode(answer)
    stream.write(len(body).to_bytes(HEADER_BYTES, "little") + body)
    stream.flush()


def main() -> None:
    """Answer jobs until the input ends."""
    os.nice(NICENESS)
    # Libraries that write to standard output must not write into the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as output:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        boot = _read(sys.stdin.buffer, Boot)
        if boot is None:
            return
        compiler = Compiler(boot)
        cap_memory(boot.memory_bytes)
        _write(output, Ready())
        while (job := _read(sys.stdin.buffer, Job)) is not None:
            _write(output, compiler.run(job))


if __name__ == "__main__":
    main()
