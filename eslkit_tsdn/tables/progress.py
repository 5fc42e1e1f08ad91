"""How far a reproduction is, on a terminal and in a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from eslkit_tsdn.recipes.values import Recipe

__all__ = ["ReproductionProgress", "title"]


def title(recipe: Recipe) -> str:
    """A recipe in a few words."""
    if recipe.network is None:
        return recipe.method.upper()
    name = f"{recipe.network.name} ({'-'.join(map(str, recipe.network.widths))})"
    how = {"scratch": "scratch", "step": recipe.label, "chain": "second stage"}
    return f"{name}, {how.get(recipe.method, recipe.method)}, seed {recipe.seed}"


class ReproductionProgress:
    """A bar for all of the work, and a line for each training that is under way.

    Args:
        recipes: all of them.
        work: FLOPs of each, by identity.
        done: identities of those that are finished already.
        console: where it goes; a log gets one line a finished training.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        *,
        work: Mapping[str, float],
        done: Sequence[str],
        console: Console,
    ) -> None:
        self.recipes = {recipe.id: recipe for recipe in recipes}
        self.work, self.console = work, console
        self.finished = set(done)
        self.parts: dict[str, float] = {}
        self.lines: dict[str, TaskID] = {}
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self.all = self.bars.add_task("all trainings", total=max(1.0, sum(work.values())), note="")

    def __enter__(self) -> Self:
        self.bars.start()
        self._show()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def told(self, message: Mapping[str, Any]) -> None:
        """A message of a worker."""
        recipe = self.recipes.get(message["id"])
        if recipe is None:
            return
        kind = message["kind"]
        if kind == "begin":
            total = recipe.budget.iterations
            self.lines[recipe.id] = self.bars.add_task(title(recipe), total=total, note="")
        elif kind == "update":
            self._update(recipe, message)
        else:
            self._end(recipe, message)
        self._show()

    def _update(self, recipe: Recipe, message: Mapping[str, Any]) -> None:
        self.parts[recipe.id] = message["done"] / recipe.budget.iterations
        if recipe.id in self.lines:
            note = f"loss {message['loss']:.4f}"
            self.bars.update(self.lines[recipe.id], completed=message["done"], note=note)

    def _end(self, recipe: Recipe, message: Mapping[str, Any]) -> None:
        self.parts.pop(recipe.id, None)
        if recipe.id in self.lines:
            self.bars.remove_task(self.lines.pop(recipe.id))
        if message["kind"] == "failed":
            self.bars.console.print(f"failed: {title(recipe)}: {message['reason']}", style="red")
            return
        self.finished.add(recipe.id)
        place = f"{len(self.finished)} of {len(self.recipes)}"
        seconds = message.get("seconds", 0.0)
        self.bars.console.print(f"{place}: {title(recipe)} ({seconds:.0f} s) {recipe.id}")

    def _show(self) -> None:
        whole = sum(self.work[each] for each in self.finished)
        begun = sum(self.work[each] * part for each, part in self.parts.items())
        note = f"{len(self.finished)} of {len(self.recipes)}"
        self.bars.update(self.all, completed=whole + begun, note=note)
