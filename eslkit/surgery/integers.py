"""The integers that modules keep about their sizes, brought along when the sizes change."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from eslkit.surgery.settings import parts_of, with_parts

__all__ = ["Aims", "Edit", "apply_edits", "candidates", "differing", "known_edits"]

_SHORT_ROW = 3
"""Of how many sizes a row is of which any may stay."""
_MOST_ROWS = 12
"""How many values of a row of sizes are tried."""


@dataclass(frozen=True)
class Edit:
    """An attribute of a module that gets a new value."""

    path: str
    attribute: str
    value: Any


@dataclass(frozen=True)
class Aims:
    """What the attributes are to be in the end, where it is known what a model is to become."""

    edits: tuple[Edit, ...] = ()
    """Those that have another value now."""
    reached: bool = False
    """Whether this resize leads there, so that all of them are due."""

    def of(self, path: str) -> tuple[Edit, ...]:
        """Those of one module."""
        return tuple(edit for edit in self.edits if edit.path == path)


def differing(module: nn.Module, twin: nn.Module) -> Iterator[tuple[str, Any]]:
    """Integers that a module keeps and its twin has another value of, with that value.

    Those of torch's own layers are left out: their parameters' shapes tell them.
    """
    if type(module) is not type(twin) or type(module).__module__.startswith("torch.nn.modules"):
        return
    for name, value in vars(module).items():
        if not name.startswith("_") and name != "training" and _holds_counts(value):
            other = vars(twin).get(name)
            if type(other) is type(value) and _holds_counts(other) and other != value:
                yield name, other


def _holds_counts(value: Any) -> bool:
    return _counts(value) or any(map(_holds_counts, parts_of(value).values()))


def _counts(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(type(v) is int or isinstance(v, np.integer) for v in value)
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def apply_edits(model: nn.Module, edits: tuple[Edit, ...]) -> None:
    """Set the attributes; the model is changed."""
    for edit in edits:
        setattr(model.get_submodule(edit.path), edit.attribute, copy.deepcopy(edit.value))


def known_edits(old: nn.Module, new: nn.Module) -> tuple[Edit, ...]:
    """Attributes of torch's own layers, read off the shapes of their new parameters."""
    edits: list[Edit] = []
    twins = dict(new.named_modules())
    for path, module in old.named_modules():
        for name, value in _known(module, twins[path]):
            if getattr(module, name) != value:
                edits.append(Edit(path, name, value))
    return tuple(edits)


def _known(old: nn.Module, new: nn.Module) -> Iterator[tuple[str, Any]]:
    shape = _weight_shape(new)
    before = _weight_shape(old)
    if isinstance(old, nn.modules.conv._ConvNd):  # pyright: ignore[reportPrivateUsage]
        if shape and before:
            yield from _convolution(old, before, shape)
    elif isinstance(old, (nn.Linear, nn.Bilinear)):
        if shape:
            yield "out_features", shape[0]
            if isinstance(old, nn.Linear):
                yield "in_features", shape[1]
    elif isinstance(old, nn.PReLU):
        yield "num_parameters", (shape or (1,))[0]
    elif isinstance(old, nn.Embedding) and shape:
        yield "num_embeddings", shape[0]
        yield "embedding_dim", shape[1]
    elif isinstance(old, nn.MultiheadAttention):
        yield from _attention(old, new)
    elif isinstance(old, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(old.mode, 1)
        held = _shape(new, "weight_ih_l0")
        if held:
            yield "input_size", held[1]
            yield "hidden_size", held[0] // gates
            if old.proj_size:
                yield "proj_size", _shape(new, "weight_hr_l0")[0]
    else:
        yield from _known_norm(old, shape or _shape(new, "running_mean"))


def _known_norm(old: nn.Module, shape: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if not shape:
        return
    if isinstance(old, (nn.LayerNorm, nn.RMSNorm)):
        yield "normalized_shape", shape
    elif isinstance(old, nn.GroupNorm):
        yield "num_channels", shape[0]
        yield "num_groups", _norm_groups(old, shape[0])
    elif isinstance(old, nn.modules.batchnorm._NormBase):  # pyright: ignore[reportPrivateUsage]
        yield "num_features", shape[0]


def _convolution(
    old: nn.Module, before: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[str, Any]]:
    groups = int(old.groups)  # type: ignore[arg-type]
    wide, narrow = (0, 1) if old.transposed else (1, 0)  # axes of inputs and outputs
    if groups > 1 and groups in (old.in_channels, old.out_channels):  # they follow the channels
        groups = shape[0] * groups // before[0]
    per_input, per_output = shape[wide], shape[narrow]
    yield "groups", groups
    if old.transposed:
        yield "in_channels", per_input
        yield "out_channels", per_output * groups
    else:
        yield "in_channels", per_input * groups
        yield "out_channels", per_output


def _attention(old: nn.MultiheadAttention, new: nn.Module) -> Iterator[tuple[str, Any]]:
    projection = _shape(new, "in_proj_weight") or _shape(new, "q_proj_weight")
    if projection:
        yield "embed_dim", projection[1]
        yield "head_dim", projection[1] // old.num_heads
        for name, weight in (("kdim", "k_proj_weight"), ("vdim", "v_proj_weight")):
            yield name, (_shape(new, weight) or projection)[1]


def _norm_groups(old: nn.GroupNorm, channels: int) -> int:
    if channels % old.num_groups == 0:
        return old.num_groups
    size = old.num_channels // old.num_groups
    return channels // size if channels % size == 0 else old.num_groups


def _weight_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of the weight, also where a parametrization computes it."""
    direction = _shape(module, "weight_v") if _shape(module, "weight_g") else ()
    return direction or _shape(module, "weight_orig") or _shape(module, "weight")


def _shape(module: nn.Module, name: str) -> tuple[int, ...]:
    tensor = getattr(module, name, None)
    return tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else ()


def candidates(module: nn.Module, path: str, sizes: Mapping[int, set[int]]) -> list[Edit]:
    """Attributes whose value is a size that changes, with what they could become.

    Args:
        module: the module whose code failed, or one that contains it, as it was.
        path: its qualified name.
        sizes: old size -> new sizes seen in the tensors of the module.
    """
    found: list[Edit] = []
    sizes = {**_differences(sizes), **sizes}
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        found.extend(Edit(path, name, new) for new in _replacements(value, sizes))
    return found


def _differences(sizes: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """Differences of sizes, whole and halved, as padding of channels is told in numbers."""
    found: dict[int, set[int]] = {}
    pairs = [(old, new) for old, wanted in sizes.items() for new in wanted]
    for old, new in pairs:
        for less, narrow in pairs:
            gap, after = old - less, new - narrow
            if gap > 0 < after:
                found.setdefault(gap, set()).add(after)
                if gap % 2 == after % 2 == 0:
                    found.setdefault(gap // 2, set()).add(after // 2)
    return found


def _replacements(value: Any, sizes: Mapping[int, set[int]]) -> Iterator[Any]:
    if _counts(value) and isinstance(value, (list, tuple)):
        for row in itertools.islice(_rows(tuple(value), sizes), _MOST_ROWS):
            changed = map(_like, value, row)
            yield tuple(changed) if isinstance(value, tuple) else list(changed)
    elif _counts(value):
        yield from (_like(value, new) for new in sorted(sizes.get(value, ())) if new != value)
    else:
        yield from _replaced_parts(value, sizes)


def _like(value: Any, new: int) -> Any:
    """The number as one of NumPy's where the value was."""
    return type(value)(new) if isinstance(value, np.integer) else new


def _rows(value: tuple[int, ...], sizes: Mapping[int, set[int]]) -> Iterator[tuple[int, ...]]:
    """Rows of sizes: all changed, equal ones alike; of a short row, then those where some stay."""
    choices = {v: sorted(sizes.get(v, ())) for v in value}
    rows = [tuple(choices[v][0] if choices[v] else v for v in value)]
    if len(value) <= _SHORT_ROW:
        rows += itertools.product(*([*choices[v], v] for v in value))
    yield from (row for row in dict.fromkeys(rows) if row != value)


def _replaced_parts(value: Any, sizes: Mapping[int, set[int]]) -> Iterator[Any]:
    """Settings with all numbers that are sizes changed, then with one of them."""
    choices = {
        key: found
        for key, part in parts_of(value).items()
        if (found := list(_replacements(part, sizes)))
    }
    if len(choices) > 1:
        yield with_parts(value, {key: found[0] for key, found in choices.items()})
    for key, found in choices.items():
        yield from (with_parts(value, {key: new}) for new in found)
