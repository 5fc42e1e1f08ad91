"""What is measured on one network: coverage, parameters, exactness, seconds, memory.

Every measure stands for itself: where one fails, its phase and the error are noted, and the others
go on.
"""

from __future__ import annotations

import copy
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eslkit
from benchmarks.strangers.inputs import Stranger
from eslkit.errors import EslError, ResizeError
from eslkit.graph.channels import ChannelGraph
from eslkit.graph.export import tensor_leaves
from eslkit.graph.trace import example_arguments

__all__ = ["build", "call", "count", "failed", "loss_of", "measure", "train_step"]

Row = dict[str, Any]


def build(stranger: Stranger) -> tuple[nn.Module, Any]:
    """The network in eval mode with statistics unlike a new one's, and its inputs."""
    torch.manual_seed(0)
    model = stranger[1]().eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                buffer.normal_()
        for parameter in model.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
        call(model, stranger[2])  # what hooks compute from weights can be copied from now on
    return model, stranger[2]


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors that the network answers with."""
    args, keywords = example_arguments(inputs)
    return tensor_leaves(model(*args, **keywords))


def count(model: nn.Module, names: set[str] | None = None) -> int:
    """Number of parameters, of all or of those named."""
    return sum(p.numel() for n, p in model.named_parameters() if names is None or n in names)


def failed(error: BaseException) -> str:
    """The error in one line; those of eslkit are told apart from crashes."""
    kind = "eslkit" if isinstance(error, EslError) else "crash"
    line = re.sub(r"\s+", " ", str(error))
    return f"{kind} {type(error).__name__}: {line[:300]}"


def loss_of(answers: list[Tensor]) -> Tensor:
    """A scalar that depends on every answer."""
    return torch.stack([a.float().square().mean() for a in answers if a.requires_grad]).sum()


def train_step(model: nn.Module, inputs: Any, *, train: bool) -> list[tuple[int, ...]]:
    """One forward and backward pass; the shapes of the answers."""
    torch.manual_seed(0)
    model = copy.deepcopy(model).train(train)
    answers = call(model, inputs)
    loss_of(answers).backward()
    return [tuple(a.shape) for a in answers]


@contextmanager
def _noted(row: Row, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
        row[phase] = "ok"
    except Exception as error:  # noqa: BLE001  whatever it is, it is the result
        row[phase] = failed(error)
    row[f"{phase}_seconds"] = round(time.perf_counter() - start, 3)


def _memory(*, reset: bool = False) -> int:
    """Highest resident memory in bytes since the last reset; 0 where the system does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]


def measure(stranger: Stranger) -> Row:
    """Everything about one network."""
    row: Row = {"name": stranger[0]}
    torch.set_num_threads(1)
    tiny = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3))
    eslkit.shrink(tiny, example_inputs=torch.zeros(1, 1, 8, 8))  # what the first call imports
    before = _memory(reset=True)
    model, inputs = build(stranger)
    row["parameters"] = count(model)
    start = time.perf_counter()
    call(copy.deepcopy(model).train(), inputs) if _trains(model, inputs) else call(model, inputs)
    row["forward_seconds"] = round(time.perf_counter() - start, 3)
    row["own_memory"] = _memory(reset=True) - before
    _coverage(row, model, inputs, before)
    if row.get("shrink") == "ok":
        with _noted(row, "exact"):
            _exactness(row, stranger)
    return row


def _trains(model: nn.Module, inputs: Any) -> bool:
    try:
        train_step(model, inputs, train=True)
    except Exception:  # noqa: BLE001  norms of one value, say: then eval mode it is
        return False
    return True


def _coverage(row: Row, model: nn.Module, inputs: Any, before: int) -> None:
    with _noted(row, "trace"):
        graph = eslkit.trace(model, example_inputs=inputs)
    row["trace_memory"] = _memory(reset=True) - before
    if row["trace"] != "ok":
        return
    used = _used(model, graph)
    _describe(row, graph)
    train = row["train_mode"] = _trains(model, inputs)
    want = train_step(model, inputs, train=train)
    made: dict[str, nn.Module] = {}
    surgery: dict[str, Callable[[], nn.Module]] = {
        "shrink": lambda: eslkit.shrink(model, example_inputs=inputs),
        "expand": lambda: eslkit.expand(model, example_inputs=inputs),
        "back": lambda: eslkit.shrink(
            eslkit.expand(model, init="first", example_inputs=inputs), example_inputs=inputs
        ),
    }
    for phase, act in surgery.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", eslkit.ResizeWarning)
            _memory(reset=True)
            with _noted(row, phase):
                made[phase] = act()
            row[f"{phase}_memory"] = _memory() - before
        kept = [str(w.message) for w in told if issubclass(w.category, eslkit.ResizeWarning)]
        if kept:
            row[f"{phase}_kept"] = kept[0][:600]
        if phase in made:
            row[f"{phase}_ratio"] = round(count(made[phase]) / max(1, count(model)), 4)
        if phase in made and phase != "back":
            with _noted(row, f"{phase}_trains"):
                got = train_step(made[phase], inputs, train=train)
                if got != want:
                    raise ValueError(f"answers of shapes {got}, not {want}")
    if "shrink" in made:
        row["shrink_ratio_used"] = round(count(made["shrink"], used) / count(model, used), 4)
    if "back" in made:
        shapes = {n: p.shape for n, p in model.named_parameters()}
        other = {n: p.shape for n, p in made["back"].named_parameters()}
        row["back"] = "ok" if shapes == other else "wrong: other shapes"


def _used(model: nn.Module, graph: ChannelGraph) -> set[str]:
    idle = {
        span.parameter
        for group in graph.groups
        for span in group.spans
        if group.protected == "the forward pass does not use it"
    }
    return {name for name, _ in model.named_parameters()} - idle


def _describe(row: Row, graph: ChannelGraph) -> None:
    resizable = graph.resizable
    row["groups"] = len(graph.groups)
    row["resizable"] = len(resizable)
    row["mixed"] = sum(1 for g in resizable if g.mixed)
    row["mixers"] = sorted({m.split(" in ")[0] for g in resizable for m in g.mixed})
    reasons: dict[str, int] = {}
    for group in graph.groups:
        if group.protected and group.width > 1:
            reasons[group.protected[:160]] = reasons.get(group.protected[:160], 0) + 1
    row["protected"] = dict(sorted(reasons.items(), key=lambda item: -item[1])[:8])


def _exactness(row: Row, stranger: Stranger) -> None:
    """Laws 3 and 4 in float64, for all groups that nothing mixes."""
    model, inputs = build(stranger)
    model = model.double()
    inputs = torch.utils._pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )
    graph = eslkit.trace(model, example_inputs=inputs)
    plain = _plain(graph)
    row["plain"] = len(plain)
    with torch.no_grad():
        want = _answers(model, inputs)
        again = _answers(model, inputs)
        if _distance(want, again) > 0:
            row["random"] = True  # the network draws numbers in eval mode
        for phase, factor, init in (("narrow", 0.5, "first"), ("preserve", 2, "preserve")):
            widths = _scaled(graph, plain, factor)
            done, refused = _resized(model, graph, widths, inputs, init)
            row[f"{phase}_refused"] = sorted(refused)[:5]
            row[f"{phase}_tested"] = sum(len(w) for w, _ in done)
            errors = [0.0]
            for resized, made in done:
                got = _answers(made, inputs)
                if init == "preserve":
                    errors.append(_distance(got, want))
                    continue
                masks = [_masked(model, graph, resized, all_roles=both) for both in (False, True)]
                errors.append(min(_distance(got, _answers(m, inputs)) for m in masks))
            row[f"{phase}_error"] = max(errors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wide = eslkit.expand(model, init="preserve", example_inputs=inputs)
        row["preserve_all_error"] = _distance(_answers(wide, inputs), want)


def _answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    torch.manual_seed(0)
    return call(model, inputs)


def _distance(left: list[Tensor], right: list[Tensor]) -> float:
    """Greatest difference relative to the greatest number."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel() and (a.is_floating_point() or a.is_complex()):
            gap = float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def _plain(graph: ChannelGraph) -> set[str]:
    """Groups whose channels no operation mixes or counts, them or what they are tied to."""
    counted = {name for constraint in graph.constraints for name in constraint.counts}
    odd = counted | {group.name for group in graph.resizable if group.mixed}
    return {g.name for g in graph.resizable if not odd & {g.name, *g.tied}}


def _scaled(graph: ChannelGraph, names: set[str], factor: float) -> dict[str, int]:
    """New widths of these groups; tied ones that cannot be scaled exactly are left out."""
    kept = {
        name
        for name in names
        if not graph.group(name).tied
        or all(graph.group(n).width * factor % 1 == 0 for n in (name, *graph.group(name).tied))
    }
    wanted = {name: max(1, round(graph.group(name).width * factor)) for name in graph.widths}
    return {n: wanted[n] for n in graph.widths if n in kept and wanted[n] != graph.widths[n]}


def _resized(
    model: nn.Module, graph: ChannelGraph, widths: dict[str, int], inputs: Any, init: str
) -> tuple[list[tuple[dict[str, int], nn.Module]], set[str]]:
    """The model with these widths; in two parts where they do not go together."""
    if not widths:
        return [], set()
    try:
        return [(widths, eslkit.resize(model, widths, init=init, example_inputs=inputs))], set()
    except ResizeError as error:
        names = list(widths)
        if len(names) < 2:
            return [], {f"{names[0]}: {str(error)[:200]}"}
    cut = len(names) // 2
    while cut < len(names) and graph.group(names[cut]).tied:
        cut += 1
    if cut == len(names):
        return [], {f"{names[0]} and {len(names) - 1} more, tied"}
    halves = [{n: widths[n] for n in part} for part in (names[:cut], names[cut:])]
    results = [_resized(model, graph, half, inputs, init) for half in halves]
    return [made for done, _ in results for made in done], results[0][1] | results[1][1]


def _masked(
    model: nn.Module, graph: ChannelGraph, widths: Mapping[str, int], *, all_roles: bool
) -> nn.Module:
    """The model with what reads the dropped channels set to zero, or all that makes them too."""
    made = copy.deepcopy(model)
    tensors = dict(made.named_parameters())
    for name, width in widths.items():
        group = graph.group(name)
        for span in group.spans:
            if (span.role == "consumer" or all_roles) and span.parameter in tensors:
                gone = torch.from_numpy(span.positions(group.width)[width:].ravel())
                tensors[span.parameter].index_fill_(span.axis, gone, 0)
    return made
