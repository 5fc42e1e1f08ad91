"""Expand strangers' networks inside of their layers, train them for an update, and collapse them.

For each network, with the clocks of its randomness set alike:

    expanded     `expand_linearly`: what the network answers is what it answered before
    trained      one update with Adam; what learns in the plain network learns in all its parts
    collapsed    `collapse`: it answers as the trained one, and has its class, keys and shapes

    python benchmarks/linear.py --match "smp/*" --out linear.jsonl

Started again, it goes on where it was.

Needs the packages of the strangers (MONAI, segmentation-models-pytorch, diffusers ...); what is
not installed is left out.
"""

from __future__ import annotations

import platform
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.strangers.sweep import doubled, fresh, parser_of, sweep, time_limit
from benchmarks.strangers.trial import build, call
from eslkit.surgery.depth import clone
from eslkit.surgery.linear import collapse, expand_linearly, product_macs

TOLERANCE = 1e-3
"""Of the largest number that is answered; single precision, tens of layers deep."""


def answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return [x.clone() for x in call(model.eval(), fresh(inputs))]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference, as a part of the largest number."""
    found = 0.0
    for x, y in zip(one, other, strict=True):
        assert x.shape == y.shape, "other shapes"
        assert torch.equal(x.isfinite(), y.isfinite()), "not finite in other places"
        if x.numel() and (x.is_floating_point() or x.is_complex()):
            scale = float(x.nan_to_num().abs().max()) or 1.0
            found = max(found, float((x - y).nan_to_num().abs().max()) / scale)
    return found


def learners(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """One pass backwards: the parameters that have a gradient other than zero."""
    torch.manual_seed(2)
    outputs = [x for x in call(model.train(), doubled(fresh(inputs))) if x.requires_grad]
    sum((x.abs().float() ** 2).mean() for x in outputs).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: grad for name, grad in grads.items() if bool(grad.any())}


def there_and_back(model: nn.Module, inputs: Any, row: dict[str, Any]) -> None:
    """`row` tells how far it came."""
    row["stage"] = "as it is"
    shapes = {k: x.shape for k, x in model.state_dict().items() if isinstance(x, Tensor)}
    before = answers(model, inputs)
    assert apart(before, answers(model, inputs)) == 0, "answers differ from call to call"
    plain = learners(clone(model), inputs)
    row["stage"] = "expand"
    row["products"] = product_macs(model)
    kind, parameters = type(model), [n for n, _ in model.named_parameters()]
    large = clone(model)
    names = expand_linearly(large)
    row["layers"] = len(names)
    row["of"] = sum(isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)) for m in model.modules())
    row["function"] = apart(before, answers(large, inputs))
    assert row["function"] < TOLERANCE, f"answers {row['function']:.1e} apart"
    row["stage"] = "train"
    optimizer = torch.optim.Adam(large.parameters(), lr=1e-4)
    learns = learners(large, inputs)
    for name in names:
        if f"{name}.weight".removeprefix(".") in plain:
            parts = [
                f"{name}.parametrizations.weight.original{i}".removeprefix(".") for i in range(3)
            ]
            # `right` is met by `left`, and that by what `right` has outside of it
            assert all(part in learns for part in parts), f"{name}: not all of it learns"
    optimizer.step()
    trained = answers(large, inputs)
    row["stage"] = "collapse"
    assert collapse(large) == names, "other layers come back"
    row["back"] = apart(trained, answers(large, inputs))
    assert row["back"] < TOLERANCE, f"answers {row['back']:.1e} apart"
    after = {k: x.shape for k, x in large.state_dict().items() if isinstance(x, Tensor)}
    assert type(large) is kind, "another class"
    assert list(after.items()) == list(shapes.items()), "other keys or shapes"
    assert [n for n, _ in large.named_parameters()] == parameters, "another order of parameters"
    row["stage"] = "done"


def measure(name: str, make: Callable[[], nn.Module], inputs: Any, limit: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "stage": "construct"}
    start = time.process_time()
    try:
        with warnings.catch_warnings(), time_limit(limit):
            warnings.simplefilter("ignore")
            there_and_back(*build((name, make, inputs)), row)
    except Exception as error:  # noqa: BLE001  a stranger's network may raise anything; it is told
        row["error"] = f"{type(error).__name__}: {error}"[:600]
        row["where"] = "".join(traceback.format_exception(error)[-3:])[-900:]
    row["seconds"] = round(time.process_time() - start, 2)
    return row


def summary(rows: list[dict[str, Any]]) -> str:
    own = [r for r in rows if r["stage"] in ("construct", "as it is")]
    tried = [r for r in rows if r not in own]
    done = [r for r in tried if r["stage"] == "done"]
    some = [r for r in done if r["layers"]]
    return "\n".join(
        [
            f"torch {torch.__version__}, {platform.machine()}, {time.strftime('%Y-%m-%d')}",
            f"{len(rows)} networks, {len(tried)} that answer and learn as they are: {len(done)} "
            f"expanded, trained and collapsed, {len(done) - len(some)} of them without a layer",
            f"layers expanded: {sum(r['layers'] for r in done)} of {sum(r['of'] for r in done)}",
            f"answers after expansion at most {max(r['function'] for r in some):.1e} apart, after "
            f"collapse {max(r['back'] for r in some):.1e}",
            f"not tried: {Counter(r['stage'] for r in own)}",
            *(f"  {r['name']}: {r['error']}" for r in own),
            *(f"failed {r['name']} ({r['stage']}): {r['error']}" for r in tried if "error" in r),
        ]
    )


def told(row: dict[str, Any]) -> str:
    words = row.get("error") or f"{row['layers']} of {row['of']} layers, {row['function']:.1e}"
    return f"{row['stage']:9} {row['seconds']:6.1f} s  {words[:200]}"


def main() -> None:
    options = parser_of(__doc__, limit=120).parse_args()
    rows = sweep(options, lambda *network: measure(*network, options.limit), told)
    print(summary(rows))


if __name__ == "__main__":
    main()
