"""What a demo run is made of, and what came out of it: the values that are written to disk."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["LINEAR", "LONG", "SCRATCH", "DemoResults", "DemoSettings", "Row", "label"]

SCRATCH, LONG, LINEAR = "scratch", "scratch-long", "linear"
"""Names of the trainings (a), (b) and (d); those of (c) are named as the steps of ESL."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DemoSettings(_Frozen):
    """Everything that the numbers of a demo depend on. Two runs with equal settings agree."""

    version: Literal[1] = 1
    """Version of this form."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(8, 16, 32), min_length=2)
    """Channels of every level of the small network."""
    stages: int = Field(default=2, ge=1)
    """Stages of the small network."""
    iterations: int = Field(default=600, ge=1)
    """Updates in one training; (a) has one training's, (b) and (d) as many as all steps of ESL."""
    batch_size: int = Field(default=16, ge=1)
    """Crops in a batch."""
    crop: int = Field(default=32, ge=8)
    """Height and width of a crop, in packed pixels."""
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Learning rate at the start of every training."""
    gain: float | None = Field(default=4.0, gt=0)
    """System gain K of the camera in DN per electron; None draws it per crop."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights and batches. The noise of the test pictures is always the same."""
    raw: str | None = None
    """Folder of camera files; None for the packaged photographs."""
    photos: str = ""
    """Digest of the photographs that were trained and tested on."""

    @property
    def multiple(self) -> int:
        """What sides must be divisible by: the expanded network halves once per width."""
        return 2 ** len(self.widths)

    @model_validator(mode="after")
    def _check_crop(self) -> Self:
        if self.crop % self.multiple:
            raise ValueError(
                f"crop={self.crop} must be a multiple of {self.multiple}, since the expanded "
                f"network halves its input {len(self.widths)} times"
            )
        return self


class Row(_Frozen):
    """One line of the demo's table: a network, what it cost and how good it is."""

    name: str
    """Short name: noisy, scratch, scratch-long, linear, EL, CSL1, ..., LSL1, ..."""
    what: str
    """The same in words."""
    parameters: int | None = None
    """Parameters of the network."""
    macs: int | None = None
    """Multiply-accumulates for one image of 1x4x512x512."""
    iterations: int | None = None
    """Updates of its training."""
    seconds: float | None = None
    """Wall time of its training."""
    metrics: dict[str, float]
    """psnr_x100, ssim_x100 and so on: means over the test photographs."""

    @property
    def flops(self) -> int | None:
        """FLOPs for one image of 1x4x512x512."""
        return None if self.macs is None else 2 * self.macs


class DemoResults(_Frozen):
    """What a finished demo says."""

    version: Literal[2] = 2
    """Version of this form."""
    settings: DemoSettings
    """What it was run with."""
    train: tuple[str, ...]
    """Names of the photographs that were trained on."""
    test: tuple[str, ...]
    """Names of the photographs that were tested on."""
    rows: tuple[Row, ...]
    """The table, in order: the noisy input, (a), (b), the steps of (c), and (d)."""
    machine: dict[str, str]
    """Processor, processes and versions."""
    finished: str
    """When it finished, UTC, ISO 8601."""

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def steps(self) -> tuple[Row, ...]:
        """The rows of (c): every step of ESL, in order."""
        others = {"noisy", SCRATCH, LONG, LINEAR}
        return tuple(row for row in self.rows if row.name not in others)

    @property
    def ratios(self) -> tuple[int, ...]:
        """The exposure ratios that were tested, in order."""
        names = (name for name in self.rows[0].metrics if name.startswith("psnr_x"))
        return tuple(int(name.removeprefix("psnr_x")) for name in names)


def label(name: str) -> str:
    """A row's or a training's name as tables show it."""
    known = {
        "noisy": "noisy input",
        SCRATCH: "(a) scratch",
        LONG: "(b) longer",
        LINEAR: "(d) linear",
    }
    return known.get(name, f"(c) {name}")
