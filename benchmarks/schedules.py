"""Plan and run the whole schedule on strangers' networks: up, trained, and back in steps.

For each network the paper's schedule (twice the width, one level, fine steps) is planned; where no
level can go in, that is noted and the schedule is planned without one. Then it is run with one
update a step:

    plan       `schedule` finds steps that lead back; how many, and how much larger it got
    run        every step is built and makes an update, the weights stay finite
    compare    class, keys and shapes are those of the user's own model, and so are the answers'

    python benchmarks/schedules.py --match "smp/*" --out schedules.jsonl

Started again, it goes on where it was. What is not installed is left out.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import nn

import eslkit
from benchmarks.strangers.sweep import (
    doubled,
    fresh,
    larger,
    parser_of,
    shapes,
    sweep,
    time_limit,
)
from benchmarks.strangers.trial import call, count, failed, loss_of
from eslkit.surgery.depth import clone
from eslkit.trainer import StepContext

Row = dict[str, Any]

MOST_PARAMETERS = 100_000_000
"""Expanded networks of more are planned, but not run."""


def trainer(inputs: Any) -> Callable[[nn.Module, StepContext], Mapping[str, float]]:
    """One update of every step; the weights must stay finite."""

    def fit(model: nn.Module, step: StepContext) -> Mapping[str, float]:
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
        loss = loss_of(call(model, fresh(inputs)))
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return {"parameters": float(count(model))}

    return fit


def planned(model: nn.Module, inputs: Any, row: Row) -> tuple[eslkit.Schedule, Any]:
    """The schedule with a level, at twice the size if a level needs that, or without one."""
    try:
        return eslkit.schedule(model, recipe="paper", example_inputs=inputs), inputs
    except eslkit.EslError as error:
        row["level"] = f"{type(error).__name__}: {error}"[:400]
        if "single position" in row["level"]:
            try:
                twice = larger(inputs)
                return eslkit.schedule(model, recipe="paper", example_inputs=twice), twice
            except eslkit.EslError as second:
                row["level"] = f"{type(second).__name__}: {second}"[:400]
    return eslkit.schedule(model, recipe="paper", depth=0, example_inputs=inputs), inputs


def there_and_back(model: nn.Module, inputs: Any, row: Row) -> None:
    """Plan, run, compare; the row tells how far it came."""
    form = {key: getattr(value, "shape", None) for key, value in model.state_dict().items()}
    row["stage"], start = "plan", time.process_time()
    made, inputs = planned(model, inputs, row)
    row["planned_seconds"] = round(time.process_time() - start, 2)
    before = shapes(model, fresh(inputs))
    row["depth"] = made.plan.depth
    row["steps"] = len(made.steps)
    row["changed"] = [[s.name, len(s.widths), s.layers, s.parameters] for s in made.steps]
    row["parameters"] = made.plan.base_parameters
    if made.steps[0].parameters > MOST_PARAMETERS:
        row["stage"] = "planned"
        return
    row["stage"] = "run"
    try:
        small = made.run(trainer(doubled(inputs))).model
    except Exception:
        row["stage"] = "own"  # does the network itself train?
        trainer(doubled(inputs))(clone(model), None)  # type: ignore[arg-type]
        row["stage"] = "run"
        raise
    row["stage"] = "compare"
    assert type(small) is type(model), "another class"
    after = {key: getattr(value, "shape", None) for key, value in small.state_dict().items()}
    assert list(after) == list(form), "other keys"
    assert after == form, "other shapes"
    assert shapes(small, fresh(inputs)) == before, "other answers"
    row["stage"] = "done"


def measure(name: str, make: Callable[[], nn.Module], inputs: Any, limit: int) -> Row:
    """Everything about one network."""
    row: Row = {"name": name, "stage": "construct"}
    start = time.process_time()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", eslkit.ResizeWarning)
        try:
            with time_limit(limit):
                torch.manual_seed(0)
                there_and_back(make(), inputs, row)
        except Exception as error:  # noqa: BLE001  a stranger's network may raise anything
            row["error"] = failed(error)
            row["where"] = "".join(traceback.format_exception(error)[-3:])[-900:]
    kept = [str(w.message) for w in warned if issubclass(w.category, eslkit.ResizeWarning)]
    if kept:
        row["kept"] = kept[0][:600]
    row["seconds"] = round(time.process_time() - start, 2)
    return row


def summary(rows: list[Row]) -> str:
    done = [r for r in rows if r["stage"] == "done"]
    deep = [r for r in done if r["depth"]]
    lines = [
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}: {len(rows)} networks, "
        f"{len(done)} there and back, {len(deep)} of them with a level; "
        f"{sum(r['stage'] == 'planned' for r in rows)} planned only, for their size"
    ]
    if done:
        growth = [r["changed"][0][3] / r["parameters"] for r in done]
        lines.append(
            f"parameters of the expanded network: median {median(growth):.2f} times, least "
            f"{min(growth):.2f}; steps: median {median(r['steps'] for r in done)}, most "
            f"{max(r['steps'] for r in done)}; seconds to plan: median "
            f"{median(r['planned_seconds'] for r in done):.1f}, most "
            f"{max(r['planned_seconds'] for r in done):.1f}"
        )
    lines.extend(
        f"{row['stage']:8} {row['name']}: {row['error']}" for row in rows if "error" in row
    )
    return "\n".join(lines)


def told(row: Row) -> str:
    words = row.get("error") or row.get("kept", "")
    return f"{row['stage']:8} {row['seconds']:6.1f} s {row.get('steps', 0):3} steps  {words[:150]}"


def main() -> None:
    options = parser_of(__doc__, limit=300).parse_args()
    rows = sweep(options, lambda *network: measure(*network, options.limit), told)
    print(summary(rows))


if __name__ == "__main__":
    main()
