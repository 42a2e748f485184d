"""The tables of the documentation: `make docs` writes them, `make check` compares them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from openai.types import completion_create_params as openai_text
from openai.types.chat import completion_create_params as openai_chat
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from plait.decoders.constrained.schema.formats import FORMATS, NUMBER_FORMATS, STANDARD
from plait.decoders.contract.registry import methods
from plait.decoders.speculative.config import DEFAULT_DRAFTERS, DraftOptions
from plait.server.api.schemas.base import Unsupported
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.models.gguf import ARCHITECTURES
from plait.server.models.hf.families import FAMILIES
from plait.server.options.serve import ServeOptions
from plait.server.parser import format_size
from plait.server.prompt.gguf_tokenizer import PRE_TOKENIZERS
from plait.server.wire.capabilities import CAPABILITIES, KINDS, WorkerKind

ROOT = Path(__file__).resolve().parents[1]
OPENAI = (
    openai_chat.CompletionCreateParamsBase.__annotations__
    | openai_text.CompletionCreateParamsBase.__annotations__
    | {"stream": bool}
)
NOT_OPTIONS = ("models", "engines")  # an argument; a list that only the YAML file has
# Tasks of benchmarks/speculation_tasks.py that are tabled, with their titles.
GAINS = {"copy": "Copying", "form": "JSON form", "json1": "JSON person", "chat1": "Open chat"}
# What a drafter's authors report, on their models and tasks; and whether it was trained here.
DRAFTER_CLAIMS: Mapping[str, tuple[str, str]] = {
    "auto": ("-", "no"),
    "prediction": ("OpenAI: faster answers that are mostly known", "no"),
    "forced": ("6x on text that is wholly forced (mistral.rs)", "no"),
    "n-gram": ("2-4x on summaries and edits (prompt lookup)", "no"),
    "suffix": ("1.5x on ShareGPT, 3.8x on SWE-Bench (Arctic)", "no"),
    "aded": ("up to 2.5x", "no"),
    "jacobi": ("about 2x on images (SJD)", "no"),
    "ppd": ("up to 2.49x", "yes"),
    "draft-model": ("2-3x (Leviathan et al.)", "no"),
    "pearl": ("up to 4.43x", "no"),
    "superposed-tree": ("-", "no"),
    "chimera": ("2.7x", "yes"),
    "eagle": ("5.6x on 13B (EAGLE-3)", "yes"),
    "lud": ("33 % faster", "inputs of ppd"),
    "superposed": ("2.44x and more, 3 completions at once", "no"),
    "typical": ("part of Medusa's 2.2-3.6x", "no"),
}
SCALARS = {"string": "text", "integer": "whole number", "boolean": "true, false"}


def parameters() -> str:
    """Return every field of both generation requests that is honoured."""
    chat, completions = _rows(ChatRequest), _rows(CompletionRequest)
    rows = []
    for name in sorted(chat.keys() | completions.keys()):
        if name in chat and chat.get(name) == completions.get(name):
            rows.append([f"`{name}`", "both", *chat[name]])
            continue
        places = {"chat": chat, "completions": completions}
        rows += [[f"`{name}`", where, *own[name]] for where, own in places.items() if name in own]
    return _table(["Field", "Where", "Values", "Meaning"], rows)


def refusals() -> str:
    """Return every field that is known and refused, with the reason."""
    fields = ChatRequest.model_fields | CompletionRequest.model_fields
    rows = []
    for name, field in sorted(fields.items()):
        if (refusal := _refusal(field)) is not None:
            passing = ", ".join(f"`{json.dumps(value)}`" for value in refusal.unless)
            rows.append([f"`{name}`", refusal.why, passing])
    return _table(["Field", "Why it is refused", "Values that pass"], rows)


def formats() -> str:
    """Return the table of the string formats of JSON schemas that are enforced."""
    others = [name for name in FORMATS if name not in STANDARD]
    rows = {
        "JSON Schema 2020-12": STANDARD,
        "of pydantic, zod and OpenAPI": others,
        "of numbers, and of strings that hold one": NUMBER_FORMATS,
    }
    return _table(
        ["Formats", "Enforced"],
        ([kind, ", ".join(f"`{name}`" for name in sorted(names))] for kind, names in rows.items()),
    )


def options() -> str:
    """Return the options of `plait serve`."""
    rows = [
        [f"`--{name.replace('_', '-')}`", _default(field), field.description or ""]
        for name, field in ServeOptions.model_fields.items()
        if name not in NOT_OPTIONS
    ]
    return _table(["Option", "Default", "Meaning"], rows)


def architectures() -> str:
    """Return what each way to give a model may hold."""
    rows = [
        ["Hugging Face folder", "`model_type`", ", ".join(f"`{name}`" for name in FAMILIES)],
        ["GGUF file", "`general.architecture`", ", ".join(f"`{n}`" for n in ARCHITECTURES)],
    ]
    return _table(["Given as", "Key", "Supported"], rows)


def pre_tokenizers() -> str:
    """Return the names of GGUF's `tokenizer.ggml.pre` that are known."""
    return ", ".join(f"`{name}`" for name in PRE_TOKENIZERS)


def modules(folder: str) -> str:
    """Return every module of a folder with the first line of its docstring."""
    rows = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        name = path.relative_to(ROOT)
        if path.name != "__init__.py" or docstring:
            first = " ".join(docstring.split("\n\n")[0].split())
            rows.append([f"`{name}`", first])
    return _table(["Module", "What it is"], rows)


def decoding_methods() -> str:
    """Return the registered decoding methods."""
    rows = [
        [
            f"`{method.name}`",
            f"{method.kind}: {method.part}" if method.part else method.kind,
            method.summary,
            ", ".join(f"`{name}`" for name in method.options.model_fields),
            method.source,
        ]
        for method in methods().values()
    ]
    return _table(["Id", "Kind", "What it does", "Options", "Source"], rows)


def drafters() -> str:
    """Return the drafters with their own options, presets and needs."""
    rows = []
    for (kind, name), method in methods().items():
        if kind != "drafter":
            continue
        own = {
            option: field.get_default(call_default_factory=True, validated_data={})
            for option, field in method.options.model_fields.items()
            if option not in DraftOptions.model_fields
            or field.default != DraftOptions.model_fields[option].default
        }
        notes = ["auto"] * (name in DEFAULT_DRAFTERS) + ["lossy"] * method.lossy
        rows.append(
            [
                f"`{name}`",
                ", ".join(notes),
                method.summary,
                ", ".join(f"`{option}` {json.dumps(value)}" for option, value in own.items()),
                ", ".join(f"`{preset}`" for preset in method.presets),
                ", ".join(sorted(method.needs)),
            ]
        )
    return _table(["Id", "", "What it drafts", "Options", "Presets", "Needs"], rows)


def speculation(*settings: str) -> str:
    """Return what papers report of drafters beside what was measured here; none: of all."""
    cells = json.loads((ROOT / "benchmarks" / "results" / "speculation.json").read_text())["cells"]
    rows = []
    for setting, (claim, trained) in DRAFTER_CLAIMS.items():
        if settings and setting not in settings:
            continue
        found = [_gain(cells.get(task, {}).get(setting)) for task in GAINS]
        lossy = any(method.name == setting and method.lossy for method in methods().values())
        rows.append([f"`{setting}`", claim, *found, trained, "lossy" if lossy else "exact"])
    titles = ["Drafter", "Reported", *GAINS.values(), "Trained", "Law"]
    return _table(titles, rows)


def speculation_result() -> str:
    """Return the whole table of the last measurement of speculation."""
    return (ROOT / "benchmarks" / "results" / "speculation.md").read_text().strip()


def peers(*titles: str) -> str:
    """Return rows of the last comparison with peers, and how it was measured; none: all rows."""
    text = (ROOT / "benchmarks" / "results" / "peers.md").read_text().strip()
    table, *notes = text.split("\n\n")
    header, rule, *rows = table.splitlines()
    chosen = [row for row in rows if not titles or row.removeprefix("| ").startswith(titles)]
    return "\n".join([header, rule, *chosen, "", *notes[:1]])


def _gain(cell: Mapping[str, Any] | None) -> str:
    """Return tokens a pass, and the median speed-up over plain decoding."""
    if cell is None or not cell["forwards"]:
        return "-"
    return f"{cell['tokens'] / cell['forwards']:.2f}, {median(cell['ratios']):.2f}x"


def claims(*methods: str) -> str:
    """Return what papers report of some methods beside what was measured here; none: of all."""
    header, *rows = _result("## What the methods' authors report")
    chosen = [row for row in rows if not methods or row[0] in methods]
    kept = [header.index(name) for name in ("method", "reported", "here")]
    kept += [header.index(name) for name in ("times fewer forwards", "times the tokens/s")]
    kept.append(header.index("accuracy"))
    titles = ["Method", "Reported", "Here", "Fewer forwards", "Tokens/s", "Accuracy, points"]
    return _table(titles, [[row[i] for i in kept] for row in chosen])


def result(heading: str, *settings: str) -> str:
    """Return a table of the last comparison of decoders; some of its rows, or all."""
    header, *rows = _result(heading)
    return _table(header, [row for row in rows if not settings or row[0] in settings])


def provenance() -> str:
    """Return when, where and by which command the comparison of decoders was made."""
    report = (ROOT / "benchmarks" / "results" / "decoders.md").read_text()
    return "\n".join(report.split("\n## ", 1)[0].splitlines()[2:]).strip()


def _result(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading of the report, its header first."""
    report = (ROOT / "benchmarks" / "results" / "decoders.md").read_text()
    section = report.split(f"\n{heading}", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells[0], *cells[2:]]


def _rows(model: type[BaseModel]) -> dict[str, list[str]]:
    """Return (values, meaning) of each honoured field of a request."""
    schema = model.model_json_schema()
    rows = {}
    for name, field in model.model_fields.items():
        if _refusal(field) is not None:
            continue
        own = schema["properties"][name]
        options = [option for option in own.get("anyOf", [own]) if option.get("type") != "null"]
        meaning = own.get("description") or _referred(options, schema)
        meaning = meaning or f"As {'OpenAI' if name in OPENAI else 'vLLM'} has it."
        rows[name] = [" or ".join(map(_values, options)), meaning]
    return rows


def _referred(options: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> str:
    """Return what the schema of an object says about itself."""
    if len(options) != 1 or "$ref" not in options[0]:
        return ""
    return str(schema["$defs"][options[0]["$ref"].rsplit("/", 1)[1]].get("description", ""))


def _refusal(field: FieldInfo) -> Unsupported | None:
    return next((extra for extra in field.metadata if isinstance(extra, Unsupported)), None)


def _values(option: Mapping[str, Any]) -> str:
    """Say in words what a JSON Schema admits."""
    if "$ref" in option:
        return f"`{option['$ref'].rsplit('/', 1)[1]}`"
    if "enum" in option or "const" in option:
        return ", ".join(f"`{value}`" for value in option.get("enum", [option.get("const")]))
    if option.get("type") == "array":
        return f"list of {_values(option['items'])}"
    if "oneOf" in option:
        return " or ".join(_values(each) for each in option["oneOf"])
    if option.get("type") == "object":
        return "object"
    name = str(option.get("type", "anything"))
    return SCALARS.get(name, name) + _range(option)


def _range(option: Mapping[str, Any]) -> str:
    bounds = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
    }
    return "".join(
        f" {sign} {option[key]:g}"
        for key, sign in bounds.items()
        if key in option and abs(option[key]) < 2**31
    )


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default in (None, "", []):
        return "none"
    if isinstance(default, ByteSize):
        return f"`{format_size(default)}`"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def worker_kinds() -> str:
    """Return which optional features each kind of worker has."""
    rows = [
        (f"`{name}`", what, *(_has(name, kind) for kind in KINDS.values()))
        for name, what in CAPABILITIES.items()
    ]
    head = ("Capability", "What needs it", *(kind.title for kind in KINDS.values()))
    return _table(head, rows)


def chart_values() -> str:
    """Return the values of the Helm chart with their defaults and comments."""
    path = ROOT / "deploy" / "chart" / "values.yaml"
    values = yaml.safe_load(path.read_text())
    rows = []
    comments = value_comments(path.read_text().splitlines())
    for name, comment in comments.items():
        default: Any = values
        for part in name.split("."):
            default = default[part]
        has_parts = any(other.startswith(f"{name}.") for other in comments)
        shown = f"`{json.dumps(default)}`" if default not in ("", [], {}, None) else "none"
        rows.append([f"`{name}`", "as below" if has_parts else shown, comment])
    return _table(["Value", "Default", "Meaning"], rows)


def value_comments(lines: Iterable[str]) -> dict[str, str]:
    """Return the comments above the keys of a YAML file by their dotted paths; block style only."""
    found, comment, path = {}, [""], [""]
    for line in lines:
        text = line.strip()
        if text.startswith("#"):
            comment.append(text.removeprefix("#").strip())
            continue
        if key := re.match(r"( *)(\w+):", line):
            path = [*path[: len(key[1]) // 2], key[2]]
            if "".join(comment):
                found[".".join(path)] = " ".join(comment).strip()
        comment = []
    return found


def _has(capability: str, kind: WorkerKind) -> str:
    if capability in kind.has:
        return "yes"
    return "some" if capability in kind.may_have else "no"
