"""The state of an optimizer (momentum, Adam's moments) carried over with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eslkit.errors import InputError
from eslkit.graph.trace import trace_fully
from eslkit.surgery.axes import AxisMap
from eslkit.surgery.inherit import axis_maps, bound, carry, named_tensors
from eslkit.surgery.level import Inserted
from eslkit.surgery.linear import LinearExpansion
from eslkit.surgery.policies import Policy, RefinesWeights, policy_of, random
from eslkit.surgery.resize import prepare_resize
from eslkit.surgery.widths import widths_towards

__all__ = ["Kind", "inherit_optimizer"]

Kind = Literal["gradient", "gradient squared", "gradient size", "weight", "weight squared"]
"""What an entry of an optimizer's state averages, and so how it is mapped."""

_KINDS: dict[str, Kind] = {
    "momentum_buffer": "gradient",  # SGD, RMSprop, Muon
    "exp_avg": "gradient",  # Adam, AdamW, NAdam, RAdam, Adamax
    "grad_avg": "gradient",  # RMSprop, centred
    "exp_avg_sq": "gradient squared",
    "max_exp_avg_sq": "gradient squared",  # AMSGrad
    "square_avg": "gradient squared",  # RMSprop, Adadelta
    "sum": "gradient squared",  # Adagrad
    "exp_inf": "gradient size",  # Adamax
    "ax": "weight",  # ASGD
    "acc_delta": "weight squared",  # Adadelta
}


def inherit_optimizer(
    optimizer: Optimizer,
    source: Optimizer,
    *,
    model: nn.Module,
    source_model: nn.Module,
    init: str | Policy = "first",
    example_inputs: Any = None,
    kinds: Mapping[str, Kind] | None = None,
    verify: bool = True,
) -> tuple[str, ...]:
    """Fill a new optimizer's state from that of the network before, through the policy's maps.

    Call it once `model` has been made from `source_model` and before it is trained. Weights go by
    the maps P and Q; their gradients, and averages of them, go by the same two the other way
    round, and averages of squares by the squared coefficients. For policies that select channels,
    that is the selection: training then goes on as in the masked network. State of fresh channels
    is zero; counts of steps are carried over. Parameter groups and their options stay as they are
    in `optimizer`.

    Args:
        optimizer: trains `model`; its state is replaced.
        source: trained `source_model`; it is not touched, and of the same class.
        model: the network after the surgery, of other widths, or with inserted levels put in or
            taken out.
        source_model: the network before, as it was when `model` was made from it.
        init: the policy that made `model`.
        example_inputs: with which `source_model` runs, as for `trace`.
        kinds: what further entries of the state average, by their keys, for optimizers other than
            torch's.
        verify: whether to check that the weights of `model` come from `source_model` by `init`.

    Returns:
        Names of the parameters that start without state: new ones, and those that changed in
        another way than by channel groups.

    Raises:
        InputError: optimizers of two classes, or of other models; an entry of the state of which
            it is not known what it averages; weights that do not come from `source_model`, or
            layers that are expanded linearly.
        ResizeError: no widths of channel groups make one network from the other.
    """
    _check_classes(optimizer, source)
    _check_single(model, source_model)
    old, new = _own_names(source_model), _own_names(model)
    trained = _trained(source, old, "source", "source_model")
    filled = _trained(optimizer, new, "optimizer", "model")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if policy_of(init) is random:  # all weights are drawn afresh
        return tuple(names[id(parameter)] for parameter in filled.values())
    link = _linked(source_model, model, init, example_inputs)
    if verify and not isinstance(link.policy, RefinesWeights):
        _verify(link, old, new)
    known: dict[str, Kind] = {**_KINDS, **(kinds or {})}
    made: dict[str, dict[str, Any]] = {}
    for name, parameter in filled.items():
        if name not in trained or not source.state.get(trained[name]):
            continue
        state = source.state[trained[name]]
        if _mapped_shape(link.weights, name, old[name]) != parameter.shape:
            continue
        made[name] = {
            key: _carried(link, name, key, value, parameter, known) for key, value in state.items()
        }
    for name, state in made.items():
        optimizer.state[filled[name]] = state
    return tuple(names[id(p)] for name, p in filled.items() if name not in made)


@dataclass(frozen=True)
class _Link:
    """How the tensors of one network come from those of another."""

    weights: Mapping[tuple[str, int], AxisMap]
    gradients: Mapping[tuple[str, int], AxisMap]
    policy: Policy


def _linked(source: nn.Module, target: nn.Module, init: str | Policy, example_inputs: Any) -> _Link:
    policy = bound(policy_of(init), source)
    traced = trace_fully(source, example_inputs=example_inputs)
    tensors = named_tensors(source)
    widths = widths_towards(traced.graph, _counterparts(source, target), tensors)
    prepared = prepare_resize(source, traced, widths)
    sizes, factors, short = prepared.sizes, prepared.numbers.factors, _short_names(source)
    maps = [axis_maps(sizes, tensors, policy, gradients=g, factors=factors) for g in (False, True)]
    weights, gradients = (
        {(short[name], axis): m for (name, axis), m in each.items()} for each in maps
    )
    return _Link(weights, gradients, policy)


def _counterparts(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """For every tensor of the source its counterpart in the target, or itself if there is none."""
    short = _short_names(source)
    there = {_short_names(target)[name]: t for name, t in named_tensors(target).items()}
    return {name: there.get(short[name], tensor) for name, tensor in named_tensors(source).items()}


def _short_names(model: nn.Module) -> dict[str, str]:
    """Names of parameters and buffers -> the same without the wrappers of inserted levels."""
    wrappers = [n for n, module in model.named_modules() if isinstance(module, Inserted)]
    short: dict[str, str] = {}
    for name in named_tensors(model):
        made = name
        for wrapper in sorted(wrappers, key=len, reverse=True):
            body = f"{wrapper}.body." if wrapper else "body."
            if made.startswith(body):
                made = (f"{wrapper}." if wrapper else "") + made[len(body) :]
        short[name] = made
    return short


def _own_names(model: nn.Module) -> dict[str, nn.Parameter]:
    short = _short_names(model)
    return {short[name]: parameter for name, parameter in model.named_parameters()}


def _check_single(*models: nn.Module) -> None:
    if any(isinstance(module, LinearExpansion) for model in models for module in model.modules()):
        raise InputError(
            "With linear= the factors of every layer begin anew in each step, so an optimizer has "
            "no state for them to inherit. Leave linear= or inherit_optimizer out."
        )


def _check_classes(optimizer: Optimizer, source: Optimizer) -> None:
    if type(optimizer) is not type(source):
        raise InputError(
            f"the state of {type(source).__name__} cannot go into {type(optimizer).__name__}; "
            "make the new optimizer of the same class"
        )


def _trained(
    optimizer: Optimizer, own: Mapping[str, nn.Parameter], what: str, model: str
) -> dict[str, nn.Parameter]:
    """The parameters that an optimizer trains, by name."""
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = {name: p for name, p in own.items() if id(p) in ids}
    if len(found) != len(ids):
        raise InputError(
            f"{what} trains {len(ids) - len(found)} parameters that {model} does not have; pass "
            f"the very module whose parameters it was made with as {model}="
        )
    return found


def _mapped_shape(
    maps: Mapping[tuple[str, int], AxisMap], name: str, tensor: Tensor
) -> tuple[int, ...]:
    return tuple(
        len(maps[name, axis].fresh) if (name, axis) in maps else size
        for axis, size in enumerate(tensor.shape)
    )


def _carried(
    link: _Link,
    name: str,
    key: str,
    value: Any,
    parameter: nn.Parameter,
    known: Mapping[str, Kind],
) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0 or key == "step":
        return value.clone()
    kind = known.get(key)
    if kind is None:
        raise InputError(
            f"the optimizer's state holds {key!r} of shape {tuple(value.shape)} for {name}, and it "
            f"is not known what it averages; pass kinds={{{key!r}: 'gradient'}} or another of "
            "'gradient squared', 'gradient size', 'weight', 'weight squared'"
        )
    maps = link.weights if kind.startswith("weight") else link.gradients
    own = {at: m for at, m in maps.items() if at[0] == name}
    if kind.endswith("squared"):
        own = {at: m.squared for at, m in own.items()}
    zeros = torch.zeros(_mapped_shape(own, name, value), dtype=value.dtype)
    made = carry({name: value}, {name: zeros}, own)[name]
    made = made.clone() if made.data_ptr() == value.data_ptr() else made
    made = made.abs() if kind == "gradient size" else made
    if made.shape != parameter.shape:
        raise InputError(
            f"the optimizer's {key!r} for {name} has shape {tuple(value.shape)}, not that of the "
            "parameter; it cannot be carried over"
        )
    return made


def _verify(link: _Link, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Weights that are only selected must be, bit for bit, those of the network before."""
    for name, tensor in old.items():
        own = {at: m for at, m in link.weights.items() if at[0] == name}
        if name not in new or not all(m.exact for m in own.values()):
            continue
        if _mapped_shape(own, name, tensor) != new[name].shape:
            continue
        made = carry({name: tensor}, {name: new[name].detach()}, own)[name]
        if not torch.equal(made, new[name].detach().to(made.device)):
            raise InputError(
                f"{name} of model does not come from source_model by this policy; call "
                "inherit_optimizer before training, with the init that made the model, or pass "
                "verify=False"
            )
