"""Strict readers of the other sources of options, a YAML file and the environment; shared types.

They refuse what lenient readers ignore: a key that is given twice, a file without a mapping, a
variable that looks like an option but is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, TypeAdapter
from pydantic_settings import BaseSettings, NoDecode, YamlConfigSettingsSource

from plait.decoders.constrained.spec import JsonStyle

Layer = TypeVar("Layer")

ENV_PREFIX = "PLAIT_"
# Variables that Kubernetes adds to containers for a service called plait or plait-*.
_SERVICE_LINK = re.compile(
    r"PLAIT_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
_JSON_STYLE = TypeAdapter(JsonStyle)
_SCORER_URL = re.compile(r"[A-Za-z0-9_.-]{1,128}=https?://\S+")


def split_commas(value: object) -> object:
    """Return the parts of a comma-separated text; YAML brings lists already."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _not_a_link(value: object) -> object:
    """Refuse the value that Kubernetes gives PLAIT_PORT beside a service called plait."""
    if isinstance(value, str) and value.startswith("tcp://"):
        raise ValueError("PLAIT_PORT is a Kubernetes service link: set enableServiceLinks: false")
    return value


def _known_device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise ValueError(f"{value!r} is no device: give cpu, cuda, or cuda:1 for the second one")
    return value


def split_pairs(value: object) -> object:
    """Return the pairs of a text like "objects=open,key_order=any"; YAML brings a mapping."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part]
    return {name: choice for name, _, choice in pairs}


def _known_style(value: dict[str, str]) -> dict[str, str]:
    known = [field.name for field in fields(JsonStyle)]
    if unknown := value.keys() - set(known):
        raise ValueError(f"{min(unknown)!r} is none of {', '.join(known)}")
    _JSON_STYLE.validate_python(value)  # its error names the field and its choices
    return value


def _known_services(values: list[str]) -> list[str]:
    for value in values:
        if not _SCORER_URL.fullmatch(value):
            raise ValueError(f"{value!r} is no NAME=URL, the URL of http:// or https://")
    if len({value.partition("=")[0] for value in values}) < len(values):
        raise ValueError("a name stands twice")
    return values


Texts = Annotated[list[str], NoDecode, BeforeValidator(split_commas)]
# The upper bounds exceed any machine; larger numbers would overflow where they are used.
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
SecondsOrOff = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Bytes = Annotated[ByteSize, Field(ge=1, le=2**50)]
BytesOrZero = Annotated[ByteSize, Field(ge=0, le=2**50)]
Port = Annotated[int, BeforeValidator(_not_a_link)]
Device = Annotated[str, AfterValidator(_known_device)]
Style = Annotated[
    dict[str, str], NoDecode, BeforeValidator(split_pairs), AfterValidator(_known_style)
]
Services = Annotated[Texts, AfterValidator(_known_services)]


class YamlFile(YamlConfigSettingsSource):
    """A YAML file of options."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return read_yaml(Path(file_path))


def open_yaml(settings: type[BaseSettings], path: Path) -> YamlFile:
    """Return a file as a source of the settings.

    Raises:
        ValueError: there is none, it can't be read (read_yaml), or one of its keys is no option.
    """
    if not path.is_file():
        raise ValueError(f"there is no configuration file {str(path)!r}")
    file = YamlFile(settings, path)
    refuse_unknown_keys(path, file.yaml_data, settings.model_fields)
    return file


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty one if the file is empty.

    Raises:
        ValueError: the file is not YAML, holds no mapping, or gives a key twice; with its name.
        OSError: it can't be read.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    except _RepeatedKey as error:
        raise ValueError(f"{path}: {_in_one_line(error)}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {_in_one_line(error)}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    except ValueError as error:  # a number or a date that is none
        raise ValueError(f"{path} is not YAML: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise ValueError(f"{path} holds {kind}, not options: write one `name: value` a line")
    if odd := [key for key in value if not isinstance(key, str)]:
        raise ValueError(f"{path}: {odd[0]!r} is no option")
    return value


def load_schemas(folder: Path | None) -> dict[str, Any]:
    """Return the JSON documents below a folder, by what references may call them.

    That is the path from the folder, with slashes, and the `$id` (`id`) that a document has.

    Raises:
        ValueError: there is no such folder, or a file is not JSON; with its name.
        OSError: one can't be read.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise ValueError(f"schema_folder: there is no folder {str(folder)!r}")
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"schema_folder: {path} is not JSON: {error}") from error
        found[path.relative_to(folder).as_posix()] = document
        name = document.get("$id", document.get("id")) if isinstance(document, dict) else None
        if isinstance(name, str):
            found[name.partition("#")[0]] = document
    return found


class _RepeatedKey(yaml.MarkedYAMLError):
    """A mapping has two values for one key."""


class _Loader(yaml.SafeLoader):
    """Refuses a repeated key of a mapping; the library would use the last value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            self._refuse_repeated(node)
        return super().construct_mapping(node, deep)

    def _refuse_repeated(self, node: yaml.MappingNode) -> None:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                problem = f"the key {key.value!r} is given twice"
                raise _RepeatedKey(problem=problem, problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                seen.add(name)


def _in_one_line(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None)
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{problem or str(error).splitlines()[0]}"


def refuse_unknown_keys(path: Path, keys: Iterable[str], options: Iterable[str]) -> None:
    """Refuse a key of a file that is no option.

    Raises:
        ValueError: naming the file, the key, and the nearest option.
    """
    known = list(options)
    for key in keys:
        if key not in known:
            raise ValueError(f"{path}: {key!r} is no option: {_hint(key.replace('-', '_'), known)}")


def _hint(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else "`plait serve --help` lists the options"


def refuse_unknown_variables(environment: Mapping[str, str], options: Iterable[str]) -> None:
    """Refuse a variable with our prefix that is no option; Kubernetes' service links are ignored.

    Raises:
        ValueError: naming the variable, and the nearest option.
    """
    known = [f"{ENV_PREFIX}{option.upper()}" for option in options]
    for name, value in environment.items():
        upper = name.upper()
        if not upper.startswith(ENV_PREFIX) or upper in known or _is_service_link(upper, value):
            continue
        raise ValueError(f"{name} in the environment is no option: {_hint(upper, known)}")


def _is_service_link(name: str, value: str) -> bool:
    is_url = name.endswith("_PORT") and _SERVICE_URL.match(value)
    return bool(is_url or _SERVICE_LINK.fullmatch(name))


def settings_from(kind: type[Layer], values: Mapping[str, Any]) -> Layer:
    """Return a settings object from those of the values that are its fields."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    plain = {name: _plain(value) for name, value in values.items() if name in names}
    return kind(**plain)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return int(value) if isinstance(value, ByteSize) else value
