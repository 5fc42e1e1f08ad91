"""Deepen strangers' networks, train them for an iteration, and flatten them back step by step.

A network counts as U-shaped if a map of the exported graph is brought to at least one and a half
times as many positions by an up-sampling, a transposed or a sub-pixel operation, after the input
has been reduced; this is judged without the code that looks for the bottleneck. For each one:

    deepened     `deepen` by the levels asked for; the output has the shapes it had
    trained      one update; every parameter of the inserted levels gets a finite gradient
    flattened    back in steps of `flatten_step`, each network run; in the end the class, the
                 keys, the shapes and the bits of every weight that was there before

    python benchmarks/depth.py --levels 1 --match "smp/*" --out depth.jsonl

Started again, it goes on where it was.

Needs the packages of the strangers (MONAI, segmentation-models-pytorch, diffusers ...); what is
not installed is left out.
"""

from __future__ import annotations

import math
import platform
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks.strangers.sweep import doubled, larger, parser_of, shapes, sweep, time_limit
from benchmarks.strangers.trial import call
from eslkit.errors import DepthError
from eslkit.graph.trace import Traced, trace_fully
from eslkit.surgery.depth import clone, deepen, flatten_parts, flatten_step
from eslkit.surgery.inserted import Inserted

UP = ("upsample", "pixel_shuffle", "max_unpool", "grid_sampler")
SAMPLED = (*UP, "convolution", "pool", "pixel_unshuffle")
"""What makes maps; the weights of an attention have four axes too."""


def u_shaped(traced: Traced) -> bool:
    """Whether a map that was reduced comes back up again."""
    rank = traced.resolution.dims + 2

    def positions(node: fx.Node) -> int:
        value = node.meta.get("val")
        large = isinstance(value, Tensor) and value.dim() == rank
        return math.prod(value.shape[2:]) if large else 0

    finest: dict[fx.Node, int] = {}
    for node in traced.exported.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        sampled = packet is not None and any(word in packet.__name__ for word in SAMPLED)
        own = positions(node) if sampled or node in traced.exported.inputs else 0
        finest[node] = max([own, *(finest[source] for source in node.all_input_nodes)])
        if packet is None or not node.all_input_nodes:
            continue
        source = node.all_input_nodes[0]
        raised = any(word in packet.__name__ for word in UP) or (
            packet.__name__ == "convolution" and bool(node.args[6])
        )
        before = positions(source)
        if raised and 1 < before < finest[source] and positions(node) >= 1.5 * before:
            return True
    return False


def train(model: nn.Module, inputs: Any) -> None:
    """One update; the inserted levels must learn."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    outputs = [x for x in call(model, inputs) if x.is_floating_point()]
    sum((x.float() ** 2).mean() for x in outputs if x.requires_grad).backward()
    for level in (m for m in model.modules() if isinstance(m, Inserted)):
        for name, parameter in level.level.named_parameters():
            gradient = parameter.grad
            assert gradient is not None, f"{name} of the level has no gradient"
            assert bool(torch.isfinite(gradient).all()), f"{name}: the gradient is not finite"
    optimizer.step()
    model.zero_grad(set_to_none=True)


def bypassed(model: nn.Module, inputs: Any) -> list[str]:
    """Convolutions at the level's resolution that ran before it, and still reach the output.

    The level's output is cut off from the gradient: what feeds the bottleneck must then get none.
    Told by hooks on the running model, not by the graph.
    """
    levels = [m for m in model.modules() if isinstance(m, Inserted)]
    sizes = {tuple(level.grid) for level in levels}
    before: dict[str, nn.Module] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, result: Tensor) -> None:
            if tuple(result.shape[2:]) in sizes and not passed:
                before[name] = module

        return hook

    passed: list[bool] = []

    def cut(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        passed.append(True)
        return result.detach()

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and ".level." not in name:
            module.register_forward_hook(note(name))
    for level in levels:
        level.level.register_forward_hook(cut)
    outputs = [x for x in call(model.train(), inputs) if x.requires_grad]
    if outputs:
        sum((x.float() ** 2).mean() for x in outputs).backward()
    return [
        name
        for name, module in before.items()
        if any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    ]


def there_and_back(model: nn.Module, inputs: Any, levels: int, note: dict[str, Any]) -> None:
    """Deepen, train, flatten; `note` tells how far it came."""
    state = {
        key: value.clone() if isinstance(value, Tensor) else value
        for key, value in model.state_dict().items()
    }
    before = shapes(model, inputs)
    note["stage"] = "deepen"
    big = deepen(model, levels=levels, example_inputs=inputs)
    found = {n: m for n, m in big.named_modules() if isinstance(m, Inserted)}
    assert found, "no inserted level"
    note["places"] = {n: "before" if m.before else "behind" for n, m in found.items()}
    note["stage"] = "run"
    assert shapes(big, inputs) == before, "other output shapes"
    note["stage"] = "train"
    try:
        train(clone(big), doubled(inputs))
    except Exception:
        note["stage"] = "own"  # does the network itself train?
        train(clone(model), doubled(inputs))
        note["stage"] = "train"
        raise
    note["bypassed"] = bypassed(clone(big), doubled(inputs))
    note["stage"] = "flatten"
    parts = flatten_parts(big)
    assert parts == 2 * levels, f"{parts} steps for {levels} levels"
    for _ in range(parts):
        big, gone = flatten_step(big)
        assert gone, "a step took no layer out"
        assert shapes(big, inputs) == before, "other output shapes"
    after = big.state_dict()
    assert type(big) is type(model), "another class"
    assert list(after) == list(state), "other keys"
    for key, value in state.items():
        if not isinstance(value, Tensor):
            continue  # what a model adds to its state
        assert torch.equal(after[key], value) or bool(value.isnan().any()), f"{key} differs"
    note["stage"] = "done"


def measure(
    name: str, make: Callable[[], nn.Module], inputs: Any, levels: int, limit: int
) -> dict[str, Any]:
    note: dict[str, Any] = {"name": name, "stage": "construct"}
    start = time.process_time()
    try:
        with warnings.catch_warnings(), time_limit(limit):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            model = make()
            note["stage"] = "trace"
            traced = trace_fully(model, example_inputs=inputs)
            note["levels"] = traced.resolution.num_levels
            note["u"] = traced.resolution.num_levels >= 2 and u_shaped(traced)
            try:
                there_and_back(model, inputs, levels, note)
            except DepthError as error:
                if "single position" not in str(error):
                    raise
                note["twice"] = True  # what the message advises
                there_and_back(model, larger(inputs), levels, note)
    except DepthError as error:
        note["refused"] = str(error)
    except Exception as error:  # noqa: BLE001  a stranger's network may raise anything; it is told
        lines = traceback.format_exception(error)
        note["error"] = f"{type(error).__name__}: {error}"[:600]
        note["where"] = "".join(lines[-3:])[-900:]
    note["seconds"] = round(time.process_time() - start, 2)
    return note


def summary(notes: list[dict[str, Any]], levels: int) -> str:
    shaped = [n for n in notes if n.get("u") and n["stage"] != "own"]
    done = [n for n in shaped if n["stage"] == "done"]
    refused = [n for n in shaped if "refused" in n]
    failed = [n for n in shaped if "error" in n]
    others = [n for n in notes if n.get("u") is False]
    share = 100 * len(done) / max(1, len(shaped))
    return "\n".join(
        [
            f"torch {torch.__version__}, {platform.machine()}, {time.strftime('%Y-%m-%d')}",
            f"{len(notes)} networks, {len(shaped)} U-shaped, +{levels}: {len(done)} deepened, "
            f"trained and flattened ({share:.1f} %), {len(refused)} refused, {len(failed)} failed",
            f"{sum('twice' in n for n in done)} of them at twice the size of the example inputs, "
            "as the refusal of a bottleneck of one position advises",
            f"{len(others)} not U-shaped: {sum('refused' in n for n in others)} refused, "
            f"{sum(n['stage'] == 'done' for n in others)} deepened all the same",
            f"not constructed, not traced, or not trainable as they are: "
            f"{Counter(n['stage'] for n in notes if 'u' not in n or n['stage'] == 'own')}",
            *(f"  {n['name']}: {n['error']}" for n in notes if n["stage"] == "own"),
            *(f"refused {n['name']}: {n['refused']}" for n in refused),
            *(f"failed  {n['name']} ({n['stage']}): {n['error']}" for n in failed),
        ]
    )


def told(note: dict[str, Any]) -> str:
    words = note.get("refused") or note.get("error") or " ".join(note.get("bypassed", ()))
    return f"{note['stage']:9} {note['seconds']:6.1f} s  {words[:200]}"


def main() -> None:
    parser = parser_of(__doc__, limit=120)
    parser.add_argument("--levels", type=int, default=1, help="levels to insert")
    options = parser.parse_args()
    notes = sweep(options, lambda *network: measure(*network, options.levels, options.limit), told)
    print(summary(notes, options.levels))


if __name__ == "__main__":
    main()
