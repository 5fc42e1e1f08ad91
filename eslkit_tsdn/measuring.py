"""A network measured on test pictures: value by value on disk, and as the tables of the paper."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.table import Table
from torch import nn

from eslkit.errors import InputError
from eslkit.files import write_atomically
from eslkit_tsdn.data.pairs import TestPair
from eslkit_tsdn.evaluation import Restore, measured, restore
from eslkit_tsdn.metrics import PROTOCOLS

__all__ = [
    "Evaluation",
    "Picture",
    "evaluation_table",
    "measure_network",
    "remaining_noise_table",
    "write_evaluation",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Picture(_Frozen):
    """What was measured of one picture."""

    name: str
    """Of the test pair."""
    ratio: int
    """Exposure ratio."""
    values: dict[str, float | None]
    """By name, as `eslkit_tsdn.evaluation.measured` gives them; None where a value is not finite
    (the PSNR of two equal pictures)."""


class Evaluation(_Frozen):
    """What a network did to test pictures."""

    version: int = 1
    """Version of this form."""
    network: str
    """Which network: the file or folder that it came from."""
    protocol: str
    """How pictures were cut, corrected and compared: a key of `eslkit_tsdn.metrics.PROTOCOLS`."""
    data: str
    """What was tested on."""
    split: str | None
    """The split of a store; None for photographs."""
    pictures: tuple[Picture, ...]
    """One by one, in the order of the data."""

    @property
    def ratios(self) -> tuple[int, ...]:
        """The exposure ratios, from the smallest."""
        return tuple(sorted({picture.ratio for picture in self.pictures}))

    def mean(self, name: str, *, ratio: int) -> float | None:
        """The arithmetic mean of a value over the pictures of a ratio; None where one has none."""
        values = [p.values.get(name) for p in self.pictures if p.ratio == ratio]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def measure_network(
    network: nn.Module,
    pairs: Iterable[TestPair],
    *,
    name: str,
    protocol: str,
    data: str,
    split: str | None = None,
    restore: Restore = restore,
    advance: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measures a network on one picture after the other.

    Args:
        network: gives one image of the shape of its input in inference; it is left as it was.
        pairs: what to test on; each is read once.
        name: what the network is called in the result.
        protocol: a key of `PROTOCOLS`.
        data: what is tested on, for people.
        split: the split of a store.
        restore: runs a network on an image; another one may go through tiles.
        advance: called after every picture.

    Raises:
        InputError: no such protocol, or no pictures.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"{protocol!r} is no protocol; known are {', '.join(PROTOCOLS)}.")
    pictures: list[Picture] = []
    for result in measured(network, pairs, protocol=PROTOCOLS[protocol], restore=restore):
        values = {key: v if math.isfinite(v) else None for key, v in result.values.items()}
        pictures.append(Picture(name=result.name, ratio=result.ratio, values=values))
        advance()
    if not pictures:
        raise InputError(f"There is no picture to test on in {data}.")
    return Evaluation(
        network=name, protocol=protocol, data=data, split=split, pictures=tuple(pictures)
    )


def write_evaluation(evaluation: Evaluation, path: Path) -> tuple[Path, Path]:
    """Writes an evaluation as JSON, and its values as CSV, a line for each picture.

    Args:
        evaluation: what to write.
        path: without an extension.

    Returns:
        The two files.

    Raises:
        StoreError: they cannot be written.
    """
    json, table = (path.with_name(f"{path.name}.{suffix}") for suffix in ("json", "csv"))
    write_atomically(json, evaluation.model_dump_json(indent=1).encode())
    text = io.StringIO()
    names = list(evaluation.pictures[0].values)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "ratio", *names])
    for picture in evaluation.pictures:
        writer.writerow([picture.name, picture.ratio, *(picture.values[name] for name in names)])
    write_atomically(table, text.getvalue().encode())
    return json, table


def evaluation_table(evaluation: Evaluation) -> Table:
    """PSNR and SSIM of noisy pictures and of restored ones, ratio by ratio."""
    split = f", {evaluation.split}" if evaluation.split else ""
    table = Table(
        title=f"{evaluation.protocol} on {evaluation.data}{split}: means over the pictures",
        title_justify="left",
    )
    table.add_column("ratio", justify="right")
    table.add_column("pictures", justify="right")
    for name in ("PSNR noisy", "PSNR restored", "SSIM noisy", "SSIM restored"):
        table.add_column(name, justify="right")
    for ratio in evaluation.ratios:
        number = sum(picture.ratio == ratio for picture in evaluation.pictures)
        row = [f"x{ratio}", str(number)]
        for name, digits in (("input_psnr", 2), ("psnr", 2), ("input_ssim", 4), ("ssim", 4)):
            row.append(_shown(evaluation.mean(name, ratio=ratio), digits))
        table.add_row(*row)
    return table


def remaining_noise_table(evaluation: Evaluation) -> Table:
    """Mean and standard deviation of what is left of the noise (the paper's Table VI)."""
    table = Table(
        title="noise left: mean / std in thousandths of white",
        title_justify="left",
    )
    first = evaluation.pictures[0].values
    places = [place for place in ("input", "middle", "output") if f"noise_std_{place}" in first]
    table.add_column("ratio", justify="right")
    for place in places:
        table.add_column(place, justify="right")
    for ratio in evaluation.ratios:
        row = [f"x{ratio}"]
        for place in places:
            both = [evaluation.mean(f"noise_{m}_{place}", ratio=ratio) for m in ("mean", "std")]
            row.append(" / ".join(_shown(None if v is None else 1000 * v, 2) for v in both))
        table.add_row(*row)
    return table


def _shown(value: float | None, digits: int) -> str:
    return "equal" if value is None else f"{value:.{digits}f}"
