"""`eslkit-tsdn denoise`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eslkit_tsdn.commands.exits import exit_codes

if TYPE_CHECKING:
    from eslkit_tsdn.backends import Backend

__all__ = ["denoise"]

FORMATS = {"dng": ".dng", "tif": ".tif", "png": ".png"}
SUFFIXES = {".dng": "dng", ".tif": "tif", ".tiff": "tif", ".png": "png"}


@dataclass(frozen=True)
class Wishes:
    """What is asked for, for every photograph alike."""

    ratio: float | None
    keep_exposure: bool
    compare: bool
    memory: float
    helps_from: float = 0.0
    """Below this ratio the weights do more harm than good."""


def denoise(
    photos: Annotated[list[Path], typer.Argument(help="Camera files with a Bayer filter.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A file (.dng, .tif, .png), or a folder for several. Default: beside the "
            "photograph, as NAME-denoised.dng.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="dng: the mosaic, for your raw converter; tif: developed, 16 bits; png: "
            "developed, 8 bits. Default: by the file's name, else dng."
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            help="Amplify by this, 1 to 300. Default: until the picture is as bright as a well "
            "exposed one; 1 where it is."
        ),
    ] = None,
    keep_exposure: Annotated[
        bool,
        typer.Option(
            "--keep-exposure",
            help="Leave the DNG as dark as the photograph, highlights kept, and ask the converter "
            "to brighten it.",
        ),
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write before and after side by side, as PNG.")
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(help="File of weights, or a run's folder. Default: eslkit's own."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the network, where its file does not tell.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="torch, onnxruntime, or auto: the faster one, measured.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Compute in bfloat16, where the processor can.")
    ] = False,
    memory: Annotated[
        float, typer.Option(help="GiB that the process may take; the picture is cut to fit.")
    ] = 1.5,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there already.")
    ] = False,
) -> None:
    """Denoise dark photographs, from a camera's file to one for your raw converter."""
    from eslkit_tsdn.weights.shipped import HELPS_FROM, SHIPPED, find_weights

    own = HELPS_FROM if find_weights(weights) == SHIPPED else 0.0
    wishes = Wishes(ratio, keep_exposure, compare, memory, own)
    with exit_codes(out if out is not None else photos[0].parent):
        jobs = planned(photos, out=out, to=to, overwrite=overwrite)
        if keep_exposure:
            check_kept([path for _, path in jobs])
        if not jobs:
            return
        ready = prepared(weights, model, backend=backend, device=device, bf16=bf16, wishes=wishes)
        failed = [photo for photo, path in jobs if not done(photo, path, ready, wishes)]
        if failed:
            if len(jobs) > 1:
                names = ", ".join(photo.name for photo in failed)
                num_done = len(jobs) - len(failed)
                typer.echo(f"{num_done} of {len(jobs)} done; not: {names}.", err=True)
            raise typer.Exit(1 if len(failed) < len(jobs) else 2)


def planned(
    photos: Sequence[Path], *, out: Path | None, to: str | None, overwrite: bool
) -> list[tuple[Path, Path]]:
    """Which file becomes which; in a folder, those that are there already are left out."""
    from eslkit.errors import InputError

    if to is not None and to not in FORMATS:
        raise InputError(f"--to {to}: expected one of {', '.join(FORMATS)}.")
    into_folder = out is not None and (len(photos) > 1 or out.is_dir() or out.suffix == "")
    jobs: list[tuple[Path, Path]] = []
    taken: dict[Path, Path] = {}
    for photo in photos:
        path = target(photo, out, to, into_folder=into_folder)
        if path.resolve() == photo.resolve():
            raise InputError(f"{path} would replace the photograph itself; name another file.")
        if path.resolve() in taken:
            raise InputError(
                f"{photo} and {taken[path.resolve()]} would both become {path}; denoise them into "
                "different folders."
            )
        taken[path.resolve()] = photo
        if path.exists() and not overwrite:
            if not into_folder:
                raise InputError(f"{path} is there already; pass --overwrite to replace it.")
            typer.echo(f"{path} is there already and is left; --overwrite replaces it.", err=True)
            continue
        jobs.append((photo, path))
    for folder in {path.parent for _, path in jobs}:
        check_folder(folder)
    return jobs


def target(photo: Path, out: Path | None, to: str | None, *, into_folder: bool) -> Path:
    """The file that a photograph becomes."""
    from eslkit.errors import InputError

    if out is None:
        return photo.with_name(f"{photo.stem}-denoised{FORMATS[to or 'dng']}")
    if into_folder:
        if out.suffix.lower() in SUFFIXES and not out.is_dir():
            raise InputError(f"-o {out} names one file for several photographs; name a folder.")
        return out / f"{photo.stem}{FORMATS[to or 'dng']}"
    by_name = SUFFIXES.get(out.suffix.lower())
    if by_name is None:
        raise InputError(
            f"-o {out}: cannot write {out.suffix!r} files; expected .dng, .tif or .png, or a "
            "folder."
        )
    if to is not None and to != by_name:
        raise InputError(f"-o {out} and --to {to} contradict each other; leave one out.")
    return out


def check_kept(paths: Sequence[Path]) -> None:
    """Refuse developed pictures whose exposure is to be kept."""
    from eslkit.errors import InputError

    for path in paths:
        if SUFFIXES[path.suffix.lower()] != "dng":
            raise InputError(
                f"--keep-exposure is for DNG files, {path} is developed; leave it out, or write "
                "a DNG."
            )


def check_folder(folder: Path) -> None:
    """Refuse what could not be written before minutes of work, not after them."""
    from eslkit.errors import StoreError
    from eslkit.files import storing

    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise StoreError(f"No permission to write into {folder}. Grant it, or choose another.")


def prepared(
    weights: Path | None,
    model: str | None,
    *,
    backend: Any,
    device: str,
    bf16: bool,
    wishes: Wishes,
) -> Backend:
    """The network, loaded and ready; says which one it is and what runs it."""
    from eslkit.errors import InputError
    from eslkit_tsdn.backends import MEASURED_SIDE, make_backend
    from eslkit_tsdn.exposure import check_ratio
    from eslkit_tsdn.weights import SHIPPED, describe_network, find_weights, load_network

    if wishes.ratio is not None:
        check_ratio(wishes.ratio)
    if wishes.memory <= 0:
        raise InputError(f"--memory {wishes.memory:g}: expected GiB, above 0.")
    path = find_weights(weights)
    network = load_network(path, model=model)
    told = "those that come with eslkit" if path == SHIPPED else path
    typer.echo(f"Weights: {told} ({describe_network(network)}).")
    ready = make_backend(network, backend=backend, device=device, bf16=bf16, tell=typer.echo)
    others = "".join(
        f"; {name} {seconds:.2f} s" for name, seconds in ready.seconds.items() if name != ready.name
    )
    own = ready.seconds.get(ready.name)
    measured = (
        ""
        if own is None
        else f" ({MEASURED_SIDE}x{MEASURED_SIDE} packed pixels in {own:.2f} s{others})"
    )
    typer.echo(f"Run by {ready.name} on {ready.device}{measured}.")
    return ready


def done(photo: Path, path: Path, backend: Backend, wishes: Wishes) -> bool:
    """Denoise one photograph; a problem with it is told, and the others go on."""
    from eslkit.errors import EslError

    try:
        one(photo, path, backend, wishes)
    except EslError as error:
        typer.echo(" ".join(str(error).split()), err=True)
        return False
    return True


def one(photo: Path, path: Path, backend: Backend, wishes: Wishes) -> None:
    """Denoise one photograph."""
    from rich.console import Console
    from rich.progress import Progress

    from eslkit.files import write_atomically
    from eslkit_tsdn.denoise import denoise as denoise_raw
    from eslkit_tsdn.denoise import encode
    from eslkit_tsdn.develop import compare
    from eslkit_tsdn.exposure import Amplification, choose_ratio
    from eslkit_tsdn.raw import read_raw
    from eslkit_tsdn.shot import read_shot

    began = time.monotonic()
    raw, shot = read_raw(photo), read_shot(photo)
    given = wishes.ratio
    ratio, reason = choose_ratio(raw) if given is None else Amplification(given, "as asked for")
    height, width = raw.mosaic.shape
    typer.echo(f"{photo}: {width}x{height}, amplified {ratio:.3g} times ({reason}).")
    if ratio < wishes.helps_from:
        typer.echo(
            f"Below {wishes.helps_from:g} times these weights take away detail and colour beside "
            "the noise: look at the result (--compare), or name others with --weights.",
            err=True,
        )
    total = (height + 1) // 2 * ((width + 1) // 2) * len(backend.parts)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("denoising", total=total)
        advance: Callable[[int], None] = lambda pixels: progress.advance(bar, pixels)  # noqa: E731
        denoised = denoise_raw(raw, backend, ratio=ratio, memory=wishes.memory, advance=advance)
    kind = SUFFIXES[path.suffix.lower()]
    data = encode(denoised, kind=kind, raw=raw, shot=shot, keep_exposure=wishes.keep_exposure)
    write_atomically(path, data)
    written = f"{path} written"
    if wishes.compare:
        picture = path.with_name(f"{path.stem}-compare.png")
        captions = (f"{photo.name}, amplified {ratio:.3g} times", "denoised")
        sheet = compare(denoised.noisy, denoised.clean, raw=raw, shot=shot, captions=captions)
        write_atomically(picture, sheet)
        written += f", {picture} shows before and after"
    typer.echo(f"{written} ({time.monotonic() - began:.1f} s).")
