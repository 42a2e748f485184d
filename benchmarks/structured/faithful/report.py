"""What `python -m benchmarks.structured faithful` prints and writes."""

from __future__ import annotations

from benchmarks.decoders.statistics import Interval
from benchmarks.markdown import table
from benchmarks.structured.faithful.measuring import (
    GROUPS,
    PARTICLES,
    STREAMS,
    FaithfulReport,
    TaskResult,
)


def markdown(report: FaithfulReport) -> str:
    """Return the whole report."""
    machine, load = report.machine, report.load
    head = (
        f"{report.date}; {machine.cpu}, plait {machine.plait}, `{report.command}`, "
        f"{report.seconds:.0f} s\n\n"
        f"{report.samples} samples of each search and task; divergence: Kullback-Leibler, of the "
        "samples' frequencies from the model's law given that a text is legal (by enumeration), in "
        "nats, with the 95 % interval of a bootstrap. Exact samples diverge too: the last row has "
        "the mean and the 95 % interval of as many."
    )
    parts = ["# Faithful samples of structured output", head]
    parts += [part for task in report.tasks for part in _task(task)]
    parts += [
        "## Checks in place of a mask",
        table(
            ("task", "checks a token", "masking: checks a token", "same texts"),
            [
                (t.task, f"{t.checks_per_token:.2f}", str(report.vocab_size), str(t.is_same))
                for t in report.tasks
            ],
        ),
        "## Searches beside plain streams",
        f"{STREAMS} plain streams alone: {load.alone:.0f} tokens a second; beside {GROUPS} groups "
        f"of {PARTICLES} particles: {load.beside:.0f}, {load.beside / load.alone:.2f} of that, and "
        f"{load.search_tokens:.0f} of the particles. No block was lost after the groups' abort.",
    ]
    return "\n\n".join(parts) + "\n"


def _task(task: TaskResult) -> list[str]:
    rows = [
        (name, _interval(found.divergence), f"{found.tokens:.1f}", f"{found.seconds:.3f}")
        for name, found in task.searches.items()
    ]
    rows.append(("exact samples", _interval(task.exact), "", ""))
    title = f"## {task.task}: {task.num_texts} texts, {100 * task.legal:.2f} % legal"
    return [title, table(("search", "divergence", "tokens a sample", "seconds a sample"), rows)]


def _interval(found: Interval) -> str:
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"
