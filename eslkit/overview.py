"""A plan as a table: what each step changes, its network, and what its training costs."""

from __future__ import annotations

from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

from eslkit.plan import Plan, Source, Step
from eslkit.words import describe, mebibytes

__all__ = ["overview"]


def overview(plan: Plan) -> str:
    """The table that `print(schedule)` shows, 120 columns wide.

    Args:
        plan: any plan.
    """
    many = len(plan.steps)
    counted = f"{many} training{'' if many == 1 else 's'}"
    table = Table(box=box.SIMPLE_HEAD, title=f"{plan.model}: {counted}")
    table.add_column("step", no_wrap=True)
    table.add_column("what changes", max_width=44)
    heads = ("parameters", "GFLOPs", "MiB forward", "MiB training", "iterations", "x scratch")
    for head in heads:
        table.add_column(head, justify="right")
    if plan.source is not None:
        table.add_row("", "the large model as it is", *_figures(plan.source), "", "")
    small = (plan.base_peak_activation_bytes, plan.base_training_bytes)
    own = (f"{plan.base_parameters:,}", f"{2 * plan.base_macs / 1e9:.3f}")
    table.add_row(
        *("", "the small model as it is", *own, *map(mebibytes, small), "", "1.00"),
        end_section=True,
    )
    for step in plan.steps:
        iterations = "" if step.iterations is None else f"{step.iterations:,}"
        cost = f"{plan.cost(step):.2f}"
        row = (step.name, describe(step, plan), *_figures(step), iterations, cost)
        table.add_row(*row, end_section=step is plan.steps[-1])
    total = sum(map(plan.cost, plan.steps))
    table.add_row("all", "training cost of the whole schedule", *[""] * 5, f"{total:.2f}")
    table.caption = (
        "x scratch: FLOPs against training the small model for as long as the last step. MiB, "
        "for inputs of these shapes: activations of a forward pass; a training with Adam, with "
        "what autograd keeps."
    )
    if plan.rates != "restart" or plan.scale_rates or plan.teach:
        lower = ", lower for larger networks" if plan.scale_rates else ""
        if plan.scale_rates and plan.linear:
            lower = f"{lower} and for layers that are larger inside"
        rates = f"{plan.rates}{lower}"
        table.caption += f" Learning rates: {rates}; weight of the teacher: {plan.teach:g}."
    if plan.linear:
        table.caption += (
            f" Layers learn with {plan.linear} times their channels inside, which is not in "
            "these figures."
        )
    table.caption_justify = "left"
    return _printed(table)


def _figures(network: Step | Source) -> tuple[str, str, str, str]:
    memory = (network.peak_activation_bytes, network.training_bytes)
    flops = f"{2 * network.macs / 1e9:.3f}"
    return f"{network.parameters:,}", flops, mebibytes(memory[0]), mebibytes(memory[1])


def _printed(table: Table) -> str:
    console = Console(file=StringIO(), width=120, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()
