"""The folder of a reproduction: one folder for every training, shared by all tables.

```
OUT/
├── plans/KEY.json              schedules, planned once (`eslkit_tsdn.recipes.walks.Planner`)
└── runs/ID/
    ├── recipe.json             what the training is, earlier trainings by their ID
    ├── weights.safetensors     the trained network
    ├── record.json             figures, seconds, versions, the weights' SHA-256; written last
    └── work/                   the training's own checkpoints
```
A training is finished when its record is there. Any number of processes, on any number of
machines with one disk, may work in one folder: a training that somebody works on is locked, and
the system gives the lock back when the process dies.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from eslkit.errors import StoreError
from eslkit.files import FolderLock, sha256_file, write_atomically
from eslkit_tsdn.recipes.values import Recipe

__all__ = ["Record", "RunsFolder"]

RECORD, WEIGHTS, RECIPE = "record.json", "weights.safetensors", "recipe.json"


class Record(BaseModel):
    """What came out of one training."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str
    """The recipe's identity; its folder has this name."""
    metrics: dict[str, float]
    """Means over the test pictures: `psnr_x100`, `ssim_x100` ..., and the noise that is left."""
    parameters: int
    """Parameters of the trained network."""
    macs: int
    """Multiply-accumulates of one image of 1x4x512x512."""
    training_flops: float
    """FLOPs of this training alone: a backward pass is taken for two forward passes."""
    iterations: int
    """Its optimizer updates."""
    seconds: float
    """Wall time of the training, where it was not interrupted."""
    versions: dict[str, str]
    """Versions and hardware."""
    finished: str
    """When it finished, UTC, ISO 8601."""
    weights_sha256: str
    """SHA-256 of `weights.safetensors`; empty where there is no network."""


class RunsFolder:
    """The folder of a reproduction.

    Args:
        folder: where it is; made when something is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def of(self, recipe: Recipe) -> Path:
        """The folder of a training."""
        return self.folder / "runs" / recipe.id

    def lock(self, recipe: Recipe) -> FolderLock:
        """The lock of a training; taken while somebody works on it."""
        return FolderLock(self.of(recipe) / "lock")

    def is_finished(self, recipe: Recipe) -> bool:
        """Whether its record is there."""
        return (self.of(recipe) / RECORD).is_file()

    def record(self, recipe: Recipe) -> Record:
        """The record of a finished training.

        Raises:
            StoreError: it is not finished, or the record is damaged.
        """
        path = self.of(recipe) / RECORD
        try:
            return Record.model_validate_json(path.read_text("utf-8"))
        except FileNotFoundError:
            raise StoreError(
                f"The training {recipe.id} in {self.folder} is not finished."
            ) from None
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise StoreError(
                f"{path} cannot be read ({type(error).__name__}): it was changed, or written by "
                f"another version. Remove {path.parent} to train it again."
            ) from error

    def weights(self, recipe: Recipe) -> dict[str, Tensor]:
        """The weights of a finished training, checked against their hash.

        Raises:
            StoreError: they are missing or were changed.
        """
        path, record = self.of(recipe) / WEIGHTS, self.record(recipe)
        if not path.is_file() or sha256_file(path) != record.weights_sha256:
            problem = "was changed since it was written" if path.is_file() else "is missing"
            raise StoreError(f"{path} {problem}. Remove {path.parent} to train it again.")
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise StoreError(f"{path} is no safetensors file ({error}).") from error

    def begin(self, recipe: Recipe) -> Path:
        """Write the recipe down.

        Returns:
            The folder for the training's own checkpoints.

        Raises:
            StoreError: the folder cannot be written.
        """
        text = json.dumps(recipe.flat(), indent=2) + "\n"
        write_atomically(self.of(recipe) / RECIPE, text.encode())
        work = self.of(recipe) / "work"
        work.mkdir(parents=True, exist_ok=True)
        return work

    def keep(self, recipe: Recipe, weights: dict[str, Tensor]) -> str:
        """Write weights; returns their SHA-256, or nothing where there are none."""
        if not weights:
            return ""
        return write_atomically(self.of(recipe) / WEIGHTS, safetensors.torch.save(weights))

    def finish(self, recipe: Recipe, record: Record) -> None:
        """Write the record, which makes the training finished."""
        text = record.model_dump_json(indent=2) + "\n"
        write_atomically(self.of(recipe) / RECORD, text.encode())
