"""A process that carries out recipes of a reproduction, beside others (see `crew`)."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from eslkit.errors import EslError
from eslkit_tsdn.recipes.estimate import critical_paths
from eslkit_tsdn.recipes.values import Recipe
from eslkit_tsdn.tables.pictures import open_pictures
from eslkit_tsdn.tables.pool import carry_out_all
from eslkit_tsdn.tables.runs import Record, RunsFolder
from eslkit_tsdn.tables.settings import Reproduction, planner_of, recipes_of, tables_of
from eslkit_tsdn.tables.workshop import Workshop

__all__ = ["main", "tell"]

OFTEN = 0.3
"""Seconds between two messages about one training."""


def tell(kind: str, recipe: Recipe, **more: Any) -> None:
    """One message to the parent."""
    sys.stdout.write(json.dumps({"kind": kind, "id": recipe.id, **more}) + "\n")
    sys.stdout.flush()


class Told:
    """Tells how far a training is, some times a second."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, recipe: Recipe, done: int, loss: float) -> None:
        """So many updates are made."""
        if time.monotonic() - self._last > OFTEN:
            self._last = time.monotonic()
            tell("update", recipe, done=done, loss=loss)


def end_with_parent() -> None:
    """End at once when the parent has ended; the runs' folder stands that."""
    sys.stdin.read()
    os._exit(1)


def main(out: Path, asked: Reproduction) -> None:
    """Work until nothing is left that can be carried out."""
    torch.set_num_threads(1)
    pictures = open_pictures(asked.scale.preset, asked.data)
    planner, runs = planner_of(out), RunsFolder(out)
    recipes = recipes_of(tables_of(asked, pictures, planner=planner), asked, planner=planner)
    workshop = Workshop(runs, pictures, planner=planner, listener=Told())

    def carry_out(recipe: Recipe) -> Record:
        tell("begin", recipe)
        record = workshop.carry_out(recipe)
        tell("end", recipe, seconds=record.seconds)
        return record

    def failed(recipe: Recipe, error: EslError) -> None:
        tell("failed", recipe, reason=str(error))

    paths = critical_paths(recipes, planner)
    carry_out_all(recipes, runs=runs, carry_out=carry_out, paths=paths, failed=failed)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("asked", type=Reproduction.model_validate_json)
    arguments = parser.parse_args()
    main(arguments.out, arguments.asked)
