"""An engine with the constraints of this benchmark, and requests to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.load import ConstraintLoader
from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec
from plait.decoders.constrained.vocabulary import make_vocabulary
from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoding import AutoregressiveMethods, DecodingSpec, MethodSpec
from plait.decoders.sampling.params import SamplingParams
from plait.server.engine.admission import Admission, EngineCapacity
from plait.server.engine.engine import Engine
from plait.server.engine.kv.block_table import BLOCK_SIZE
from plait.server.engine.kv.manager import KVCacheManager
from plait.server.engine.runner import Runner
from plait.server.models.catalog import resolve
from plait.server.models.load import load_model
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from plait.server.settings import EngineSettings
from plait.server.wire.messages import CompiledConstraint, Delta, Failed, GenerateRequest

NUM_BLOCKS = 2048
SEARCHES: Mapping[str, dict[str, Any] | None] = {
    "masked": None,
    "smc, 16 particles": {"name": "smc"},
    "mcmc, restart": {"name": "mcmc"},
    "cars": {"name": "cars"},
}


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, and the few texts that may follow it."""

    name: str
    prompt: str
    kind: str  # of the constraint
    text: str


TASKS = (
    Task(
        "colour",
        "My favourite colour has always been",
        "choice",
        '[" blue", " blue-green", " red", " green like grass", " that of the sky", " a deep red"]',
    ),
    Task(
        "name",
        "Once upon a time there was a little girl. Her name was",
        "regex",
        r" (Ann|Anna|Annabelle|Mary|Mary Lou|Eliza|Elizabeth|Sara|Sarah)\.",
    ),
    Task(
        "date",
        "The French Revolution began with the storming of the Bastille on",
        "regex",
        r" (the 4th of (July|June), 178[0-9]|July (4|14), 178[0-9]|June 14)",
    ),
)
LETTERS = Task("letters", "Once upon a time", "regex", "[a-z ]{400}")


class BlackBox:
    """The same language, of which only a check is known: every token looks legal."""

    is_exact = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def fill_bitmask(self, bitmask: Tensor, row: int) -> bool:
        """Allow everything."""
        bitmask[row] = -1
        return False

    def fork(self) -> BlackBox:
        """Return an independent copy."""
        return BlackBox(self._inner.fork())

    def forced_tokens(self) -> Sequence[int]:
        """Return nothing: it is not known what follows."""
        return ()

    def boundary_tokens(self) -> Sequence[int]:
        """Return nothing."""
        return ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass(slots=True)
class Lab:
    """An engine, its tokenizer, and the constraint of each task."""

    engine: Engine
    tokenizer: Tokenizer
    vocab_size: int
    constraints: Mapping[str, Constraint]
    num_requests: int = 0
    stops: list[int] = field(default_factory=list)

    def ask(self, task: Task, seed: int, n: int, decoding: DecodingSpec, **fields: Any) -> str:
        """Add a request; return its name."""
        self.num_requests += 1
        name = f"r{self.num_requests}"
        key = fields.pop("key", task.name)
        self.engine.add(
            GenerateRequest(
                name,
                fields.pop("prompt", None) or self.tokenizer.encode(task.prompt),
                fields.pop("sampling", SamplingParams(seed=seed)),
                fields.pop("max_tokens", 24),
                n=n,
                stop_token_ids=fields.pop("stops", self.stops),
                constraint=CompiledConstraint(key, b"", 0) if key in self.constraints else None,
                decoding=decoding,
                **fields,
            )
        )
        return name

    def run(self) -> dict[tuple[str, int], tuple[list[int], Delta]]:
        """Step to the end; return the tokens and the last delta of each choice."""
        tokens: dict[tuple[str, int], list[int]] = {}
        found: dict[tuple[str, int], tuple[list[int], Delta]] = {}
        while self.engine.has_work:
            reports = self.engine.step()
            assert not any(isinstance(report, Failed) for report in reports), reports
            for delta in (report for report in reports if isinstance(report, Delta)):
                key = delta.request_id, delta.index
                tokens[key] = tokens.get(key, []) + delta.token_ids
                if delta.finish_reason is not None:
                    found[key] = tokens[key], delta
        return found


def open_lab(name: str, max_num_seqs: int = 160) -> Lab:
    """Load a model and the constraints of the tasks."""
    files = resolve(name)
    model, tokenizer = load_model(files), load_tokenizer(files)
    stops = [i for i in tokenizer.eos_token_ids if i < model.vocab_size]
    vocabulary = make_vocabulary(tokenizer.token_bytes[: model.vocab_size], stops)
    loader, constraints = ConstraintLoader(vocabulary), dict[str, Constraint]()
    for task in (*TASKS, LETTERS):
        spec = ConstraintSpec(task.kind, task.text)  # type: ignore[arg-type]
        table = compile_constraint(spec, vocabulary, ConstraintLimits()).table
        constraints[task.name] = loader.load(task.name, table)
        constraints[f"{task.name}, checked"] = BlackBox(constraints[task.name])
    decoder = AutoregressiveDecoder(model.vocab_size, backend=model.backend)
    capacity = EngineCapacity((NUM_BLOCKS - 1) * BLOCK_SIZE, model.vocab_size, model.fingerprint)
    admission = Admission(
        capacity, lambda request: decoder, lambda compiled: constraints[compiled.key].fork()
    )
    runner = Runner(model, model.new_kv_cache(NUM_BLOCKS), model.backend)
    settings = EngineSettings(name, max_num_seqs=max_num_seqs)
    engine = Engine(runner, KVCacheManager(NUM_BLOCKS, runner.copy_block), admission, settings)
    return Lab(engine, tokenizer, model.vocab_size, constraints, stops=stops)


def decoding_of(search: dict[str, Any] | None, sampler: str = "ordinary") -> DecodingSpec:
    """Return how a request is decoded, as the API would say it."""
    options = dict(search or {})
    name = options.pop("name", None)
    methods = AutoregressiveMethods(MethodSpec(sampler))
    spec = None if name is None else MethodSpec(name, options)
    return DecodingSpec(methods, spec, trace=True)
