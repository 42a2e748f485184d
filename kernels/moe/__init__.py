"""Routed feed-forward: every row takes a few of many experts, as its router scores them.

x [rows, hidden] fp32 -> [rows, hidden] fp32. A score is the sigmoid of the router's product. The
choice is made of scores plus bias: the groups with the best two experts, in them the best experts;
a share is the score itself, over the sum of those chosen. Law: on the compiled path a row of the
result has the same bits whatever the other rows are. Cost: three small products for every expert
that some row takes; slow on a CPU, where each of them is a call of its own.

Source: DeepSeek-V3, arXiv:2412.19437, section 2.1.2; LLaDA2.0, arXiv:2512.15745.
"""

from __future__ import annotations

from plait.kernels.moe.weights import ExpertRouting, ExpertWeights

__all__ = ["ExpertRouting", "ExpertWeights"]
