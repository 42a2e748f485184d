"""How faithfully searches sample structured output, what it costs, and what it costs others."""

from benchmarks.structured.faithful.measuring import FaithfulReport, measure_load, measure_task
from benchmarks.structured.faithful.report import markdown
from benchmarks.structured.faithful.setup import TASKS, open_lab

__all__ = ["TASKS", "FaithfulReport", "markdown", "measure_load", "measure_task", "open_lab"]
