"""How JSON schemas fare: accepted or refused, and every instance walked through the real mask.

    python benchmarks/maskbench.py [--model NAME] [--json FILE] [CORPUS ...]

A corpus is maskbench's JSON lines (.jsonl.gz) or the official JSON-Schema-Test-Suite (.tar.gz); by
default those beside the repository. Without --model the vocabulary is the 256 bytes: what is legal
is the same, and a schema compiles in milliseconds. Exit code 1 when an accepted schema lets an
invalid instance through.
"""

from __future__ import annotations

import argparse
import gzip
import json
import signal
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.load import ConstraintLoader, LoadedConstraint
from plait.decoders.constrained.spec import (
    ConstraintError,
    ConstraintLimits,
    ConstraintSpec,
    UnsupportedKeyword,
)
from plait.decoders.constrained.vocabulary import Vocabulary, make_vocabulary
from plait.server.models.catalog import resolve
from plait.server.prompt.tokenizer import load_tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DEFAULT = ("maskbench-sample.jsonl.gz", "json-schema-test-suite-draft2020-12.tar.gz")
REMOTES = "http://localhost:1234/"  # where the Test-Suite says that its documents are
DEADLINE_S = 30  # of one schema; the server's is shorter and kills
TOP = 25  # refusals listed


class Deadline(Exception):
    """A schema took too long."""


@dataclass(frozen=True, slots=True)
class Case:
    """A schema and its instances."""

    name: str
    schema: Any
    tests: list[dict[str, Any]]
    group: str = ""  # of the Test-Suite the keyword's file, of maskbench the source


@dataclass(slots=True)
class Tally:
    """The counts of one corpus."""

    counts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)  # accepted-invalid, by schema
    seconds: list[float] = field(default_factory=list)  # to compile an accepted schema

    def slowest(self, share: float) -> float:
        """Return a quantile of the compile times in milliseconds."""
        ordered = sorted(self.seconds) or [0.0]
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def cases(corpus: Path, draft: str = "draft2020-12") -> Iterator[Case]:
    """Yield the schemas of a corpus; of the Test-Suite the required part of a draft."""
    return _lines(corpus) if corpus.name.endswith(".jsonl.gz") else _suite(corpus, draft)


def _lines(corpus: Path) -> Iterator[Case]:
    with gzip.open(corpus, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            yield Case(row["id"], row["schema"], row["tests"], _source(row["id"]))


def _source(name: str) -> str:
    """Return where a schema comes from: Github_easy of Github_easy---o1, BFCL of BFCL_simple_1."""
    return name.partition("---" if "---" in name else "_")[0]


def _suite(corpus: Path, draft: str) -> Iterator[Case]:
    with tarfile.open(corpus) as archive:
        for member in archive.getmembers():
            path = Path(member.name)
            if path.parts[-3:-1] != ("tests", draft) or path.suffix != ".json":
                continue
            content = archive.extractfile(member)
            assert content is not None
            for index, group in enumerate(json.load(content)):
                name = f"{path.stem} {index}: {group['description']}"
                yield Case(name, group["schema"], group["tests"], path.stem)


def remotes(corpus: Path) -> dict[str, Any]:
    """Return what the Test-Suite's schemas refer to, by URI: its remotes, the metaschemas.

    The archive may hold the suite or, as those of code hosts do, one folder with it.
    """
    found = {
        uri.rstrip("#"): REGISTRY[uri].contents
        for uri in REGISTRY
        if uri.startswith(("https://json-schema.org/", "http://json-schema.org/"))
    }
    with tarfile.open(corpus) as archive:
        for member in archive.getmembers():
            path = Path(member.name)
            if path.suffix != ".json" or "remotes" not in path.parts[:2]:
                continue
            content = archive.extractfile(member)
            assert content is not None
            place = path.parts[path.parts.index("remotes") + 1 :]
            found[REMOTES + "/".join(place)] = json.load(content)
    return found


def key_order(schema: Any) -> dict[str, int]:
    """Return the rank of every property name by its first appearance in the schema."""
    ranks: dict[str, int] = {}
    todo = [schema]
    while todo:
        value = todo.pop(0)
        named = value.get("properties") if isinstance(value, dict) else None
        for name in named if isinstance(named, dict) else ():
            ranks.setdefault(name, len(ranks))
        if isinstance(value, dict | list):
            todo.extend(value.values() if isinstance(value, dict) else value)
    return ranks


def reordered(instance: Any, ranks: dict[str, int]) -> Any:
    """Return the instance with its keys in the schema's order, unknown ones last."""
    if isinstance(instance, dict):
        names = sorted(instance, key=lambda name: ranks.get(name, len(ranks)))
        return {name: reordered(instance[name], ranks) for name in names}
    return [reordered(i, ranks) for i in instance] if isinstance(instance, list) else instance


def instance_text(instance: Any, separators: tuple[str, str] = (", ", ": ")) -> bytes | None:
    """Return an instance as JSON; None for half a surrogate pair, which no text can hold."""
    try:
        return json.dumps(instance, ensure_ascii=False, separators=separators).encode()
    except UnicodeEncodeError:
        return None


def is_accepted(start: LoadedConstraint, instance: Any, vocabulary: Vocabulary) -> bool:
    """Walk an instance through the matcher."""
    text = instance_text(instance)
    return text is not None and is_complete(start, text, vocabulary)


def is_complete(start: LoadedConstraint, text: bytes, vocabulary: Vocabulary) -> bool:
    """Walk a text through the matcher, byte by byte."""
    constraint = start.fork()
    tokens = vocabulary.token_of
    return all(constraint.accept_token(tokens[bytes([b])]) for b in text) and (
        constraint.is_accepting()
    )


def judge(case: Case, vocabulary: Vocabulary, tally: Tally) -> None:
    """Compile a schema and walk its instances."""
    started = time.perf_counter()
    spec = ConstraintSpec("json_schema", json.dumps(case.schema))
    try:
        done = compile_constraint(spec, vocabulary, ConstraintLimits(max_bytes=2**20))
    except (ConstraintError, Deadline) as error:
        tally.counts["refused"] += 1
        tally.counts["valid, schema refused"] += sum(test["valid"] for test in case.tests)
        tally.refusals[refusal(error)] += 1
        return
    tally.seconds.append(time.perf_counter() - started)
    tally.counts["accepted"] += 1
    start = ConstraintLoader(vocabulary).load("", done.table)
    ranks = key_order(case.schema)
    for test in case.tests:
        given = is_accepted(start, test["data"], vocabulary)
        either = given or is_accepted(start, reordered(test["data"], ranks), vocabulary)
        kind = "valid" if test["valid"] else "invalid"
        how = "accepted as given" if given else "accepted in schema order" if either else "rejected"
        tally.counts[f"{kind}, {how}"] += 1
        if either and not test["valid"]:
            tally.leaks.append(case.name)


def refusal(error: Exception) -> str:
    """Return why a schema was refused, without the place in the schema."""
    named = f"{error.keyword}: {error.reason}" if isinstance(error, UnsupportedKeyword) else ""
    return (named or str(error) or type(error).__name__)[:90]


def run(corpus: Path, vocabulary: Vocabulary) -> Tally:
    """Judge every schema of a corpus."""
    tally = Tally()
    for case in cases(corpus):
        signal.alarm(DEADLINE_S)
        try:
            judge(case, vocabulary, tally)
        finally:
            signal.alarm(0)
    return tally


def report(corpus: Path, tally: Tally) -> None:
    """Print one corpus's table."""
    counts = tally.counts
    schemas = counts["accepted"] + counts["refused"]
    print(f"\n## {corpus.name}: {schemas} schemas\n")
    print("| what | count |\n|---|---|")
    print(f"| schemas accepted | {counts['accepted']} ({counts['accepted'] / schemas:.1%}) |")
    print(f"| schemas refused, each by its keyword | {counts['refused']} |")
    for kind in ("valid", "invalid"):
        for how in ("accepted as given", "accepted in schema order", "rejected"):
            print(f"| {kind} instances {how} | {counts[f'{kind}, {how}']} |")
    print(f"| valid instances of refused schemas | {counts['valid, schema refused']} |")
    print(f"| compile ms p50 / p99 / max | {' / '.join(_times(tally))} |")
    print("\n| refused for | schemas |\n|---|---|")
    for reason, count in tally.refusals.most_common(TOP):
        print(f"| {reason} | {count} |")
    for name in tally.leaks:
        print(f"\nLEAK: {name}")


def _times(tally: Tally) -> list[str]:
    return [f"{tally.slowest(share):.0f}" for share in (0.5, 0.99, 1.0)]


def choose_vocabulary(model: str | None) -> Vocabulary:
    """Return a model's vocabulary, or the bytes and an end."""
    if model is None:
        return make_vocabulary([*(bytes([b]) for b in range(256)), b""], [256])
    tokenizer = load_tokenizer(resolve(model))
    return make_vocabulary(tokenizer.token_bytes, tokenizer.eos_token_ids)


def _interrupt(*_: object) -> None:
    raise Deadline


def main() -> int:
    """Judge the corpora; return 1 if an invalid instance got through."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("corpora", nargs="*", type=Path, metavar="CORPUS")
    parser.add_argument("--model", help="take this model's vocabulary")
    parser.add_argument("--json", type=Path, help="write the counts there, too")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, _interrupt)
    vocabulary = choose_vocabulary(args.model)
    counted = {}
    for corpus in args.corpora or [SHARED / name for name in DEFAULT]:
        tally = run(corpus, vocabulary)
        report(corpus, tally)
        counted[corpus.name] = {**tally.counts, "leaks": tally.leaks}
    if args.json:
        args.json.write_text(json.dumps(counted, indent=2))
    return int(any(found["leaks"] for found in counted.values()))


if __name__ == "__main__":
    sys.exit(main())
