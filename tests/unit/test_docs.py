"""The documentation's pages are in its index, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fixtures.source_tree import ROOT

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(DOCS.glob("*.md")),
    DOCS / "examples" / "README.md",
]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")  # no addresses, no anchors alone


def links(page: Path) -> set[str]:
    return set(LINK.findall(page.read_text()))


def test_every_page_is_in_the_index() -> None:
    found = links(DOCS / "README.md")
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= found
    assert "docs/README.md" in links(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.name}")
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


def test_the_method_that_is_shown_is_the_one_that_is_tested() -> None:
    source = DOCS / "examples" / "bigram_drafter"
    shown = re.findall(r"^```\w+\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    assert (source / "bigram_drafter.py").read_text() in shown
    entry_point = next(text for text in shown if text.startswith("[project.entry-points"))
    assert entry_point in (source / "pyproject.toml").read_text()


PATH = re.compile(r"`((?:server|decoders|kernels|tests|docs|benchmarks)/[\w/.]*)`")


@pytest.mark.parametrize("page", PAGES[:3], ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    assert [path for path in PATH.findall(page.read_text()) if not (ROOT / path).exists()] == []


# What the pages quote, and where it is said.
QUOTED = {
    "only this container can reach the server": "server/serve.py",
    "health checks won't find this server": "server/serve.py",
    "token trace not written": "server/telemetry/token_trace.py",
    "traces can't be sent": "server/telemetry/otlp.py",
    "traces are off: the extra is missing": "server/telemetry/tracing.py",
    "standard output can't be written": "server/telemetry/streams.py",
    "draft store not saved": "server/engine/draft_store/keeper.py",
    "as the system does when memory runs out": "server/pool/local/process.py",
    "is more than the memory there is": "server/engine/build.py",
    "has no worker right now": "server/pool/replica_group.py",
    "Give a valid API key: Authorization: Bearer.": "server/api/auth.py",
    "compiled CPU kernels are missing, the slow ones serve": "kernels/extension.py",
    "the kernels are not compiled, slower ones will serve": "setup.py",
    "PLAIT_PORT is a Kubernetes service link": "server/config_sources.py",
}


@pytest.mark.parametrize(("message", "source"), QUOTED.items())
def test_troubleshooting_shows_messages_as_they_are(message: str, source: str) -> None:
    assert message in (DOCS / "troubleshooting.md").read_text()
    assert message in (ROOT / source).read_text()
