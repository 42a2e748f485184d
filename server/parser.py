"""The parser of the command line: `--version`, and the options of `plait serve` in groups."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser, HelpFormatter, _ArgumentGroup
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource

from plait.server.options.serve import ServeOptions

SERVE = "serve."  # prefix of the options of `plait serve`
METAVARS = {"ByteSize": "SIZE", "list[str]": "LIST", "Path": "PATH", "str": "TEXT"}
METAVARS |= {"dict[str,str]": "PAIRS"}
METAVARS |= {"int": "N", "float": "SECONDS"}  # every float is a time


def make_source(command: type[BaseSettings]) -> CliSettingsSource[Any]:
    """Return the settings source that parses a command line."""
    name = str(command.model_config["cli_prog_name"])
    parser = ArgumentParser(name, description=command.__doc__, allow_abbrev=False)
    parser.add_argument(
        "--version",
        action="version",
        version=f"{name} {version('plait')}",
        help="show the version and exit",
    )
    return CliSettingsSource(
        command,
        root_parser=parser,
        add_argument_method=_add_argument,
        formatter_class=HelpFormatter,
    )


def format_size(size: ByteSize) -> str:
    """Return a size as a person writes it: 1GiB, 1.5MiB."""
    return size.human_readable(separator="").replace(".0", "") if size else "0"


def readable_default(field: FieldInfo) -> str:
    """Return an option's default as a person writes it; an empty text if there is none."""
    default = field.get_default(call_default_factory=True, validated_data={})
    if default in (None, "", []):
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return format_size(default) if isinstance(default, ByteSize) else f"{default}"


def option_group(name: str) -> str:
    """Return the heading of an option in the help of `plait serve`."""
    bases = (base for base in ServeOptions.__mro__ if issubclass(base, BaseModel))
    layer = next(base for base in bases if name in base.__annotations__)
    return (layer.__doc__ or "").split("\n")[0].rstrip(".") if layer is not ServeOptions else ""


def _add_argument(parser: ArgumentParser, *names: str, **options: Any) -> Action:
    """Add an argument; those of `plait serve` with a readable help text, in groups."""
    _, _, name = options.get("dest", names[0]).partition(SERVE)
    if name not in ServeOptions.model_fields or options["help"] == SUPPRESS:
        return parser.add_argument(*names, **options)
    parser.usage = f"{parser.prog} [OPTIONS] [MODEL ...]"
    field = ServeOptions.model_fields[name]
    default = readable_default(field)
    shown = f"{field.description} (default: {default})" if default else field.description or ""
    options["help"] = shown.replace("%", "%%")
    if (metavar := options.get("metavar")) in METAVARS:
        options["metavar"] = METAVARS[metavar]
    return _group(parser, option_group(name)).add_argument(*names, **options)


def _group(parser: ArgumentParser, title: str) -> ArgumentParser | _ArgumentGroup:
    if not title:
        return parser
    groups = (group for group in parser._action_groups if group.title == title)
    return next(groups, None) or parser.add_argument_group(title)
