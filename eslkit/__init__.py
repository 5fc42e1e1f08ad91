"""Expand-Shrink-Learning for any encoder-decoder in PyTorch.

A small network becomes better without a teacher: it is expanded into a larger network of the same
form, that one is trained, and it is shrunk back a few layers at a time, training after each step.
"""

from __future__ import annotations

from eslkit.cost import Cost, cost
from eslkit.errors import EslError
from eslkit.graph.channels import ChannelGraph, ChannelGroup, ChannelSpan
from eslkit.paper import paper
from eslkit.schedule import Result, Schedule, schedule, schedule_from
from eslkit.surgery import policies
from eslkit.surgery.api import expand, shrink, trace
from eslkit.surgery.optimizers import inherit_optimizer
from eslkit.surgery.resize import ResizeWarning, inherit, resize
from eslkit.trainer import StepContext

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "ChannelSpan",
    "Cost",
    "EslError",
    "ResizeWarning",
    "Result",
    "Schedule",
    "StepContext",
    "cost",
    "expand",
    "inherit",
    "inherit_optimizer",
    "paper",
    "policies",
    "resize",
    "schedule",
    "schedule_from",
    "shrink",
    "trace",
]
