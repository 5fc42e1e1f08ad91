"""The wrapper that holds an inserted level at a module of the user's."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eslkit.graph.maps import Layout

__all__ = ["Inserted", "own_names"]


class Inserted(nn.Module):
    """A module of the user's with an inserted level before or behind it.

    Args:
        body: the user's module.
        level: maps (batch, width, *positions) to the same shape.
        before: whether the level works on what goes into the module, or on what comes out.
        slots: which of the tensors that go in, or come out, the level works on.
        layout: where that tensor has its channels.
        grid: its positions along each axis when the level was inserted.
    """

    def __init__(
        self,
        body: nn.Module,
        level: nn.Module,
        *,
        before: bool,
        slots: tuple[int, ...] = (0,),
        layout: Layout = "first",
        grid: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.body = body
        self.level = level
        self.before = before
        self.slots = slots
        self.layout: Layout = layout
        self.grid = grid

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's module gives, with the level before or behind it."""
        if not self.before:
            return self._with_level(self.body(*args, **kwargs))
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            return self.body(self._level(args[0]))
        args, kwargs = self._with_level((args, kwargs))
        return self.body(*args, **kwargs)

    def _with_level(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return self._level(tree)
        leaves, spec = pytree.tree_flatten(tree)
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        made = self._level(leaves[tensors[self.slots[0]]])
        for slot in self.slots:
            leaves[tensors[slot]] = made
        return pytree.tree_unflatten(leaves, spec)

    def _level(self, x: Tensor) -> Tensor:
        """The level's result, a copy: code that writes into it must not harm the gradient."""
        if self.layout == "first":
            return self.level(x).clone()
        if self.layout == "last":
            return self.level(x.movedim(-1, 1)).movedim(1, -1).clone()
        return self.level(x.mT.unflatten(2, self._sides(x.shape[1]))).flatten(2).mT.clone()

    def _sides(self, tokens: int) -> tuple[int, ...]:
        """The grid of so many tokens: the one that was traced, or one of the same proportions."""
        factor = (tokens / math.prod(self.grid)) ** (1 / len(self.grid))
        return tuple(round(side * factor) for side in self.grid)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise  # Python's own protocols: a module's way to be copied is not the wrapper's
            return getattr(super().__getattr__("body"), name)  # as if it were the user's module


def own_names(model: nn.Module) -> dict[str, str]:
    """Name of a module -> what it is called without levels; what belongs to a level is left out."""
    wrappers = [name for name, module in model.named_modules() if isinstance(module, Inserted)]
    found: dict[str, str] = {}
    for name, _ in model.named_modules():
        own = name
        for wrapper in reversed(wrappers):  # the innermost first
            if own == f"{wrapper}.body" or own.startswith(f"{wrapper}.body."):
                own = wrapper + own.removeprefix(f"{wrapper}.body")
        if name not in wrappers and not any(name.startswith(f"{w}.level") for w in wrappers):
            found[name] = own
    return found
