"""How much faster crops come from a prepared store than from decoding: the same crops, one run.

A SID folder of full-size files (2848x4256) with real names is made, prepared, and read in the
order in which training asks for crops: shuffled, one crop of 512 packed pixels (a short and a long
exposure) at a time. The same crops are cut from the camera files, decoded for each crop; and, as
the best that decoding could do, with all eight crops of a file cut after one decoding. Mosaics
are also compared with packed planes as the form to keep.

    python benchmarks/store.py --pairs 10

Medians over the crops; the files lie in the page cache in all cases, so that on an idle machine
both clocks agree.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import rawpy
import torch
from numpy.typing import NDArray

from eslkit_tsdn.data.prepare import prepare
from eslkit_tsdn.data.sid_folder import find_dataset
from eslkit_tsdn.data.store import Frame, Store, verify_store
from eslkit_tsdn.data.store_sources import PairSource, Place, cut, tiles
from eslkit_tsdn.raw import normalize, pack, read_raw
from tests.eslkit_tsdn.dng import write_dng

ROWS, COLUMNS, CROP = 2848, 4256, 512
T = TypeVar("T")


def make_folder(root: Path, *, num_pairs: int) -> Path:
    """So many pairs of full-size camera files with real names."""
    rng = np.random.default_rng(0)
    for role, stem, top, exposure in (
        ("short", "{:05d}_00_0.1s", 700, (1, 10)),
        ("long", "{:05d}_00_10s", 16383, (10, 1)),
    ):
        folder = root / "Sony" / role
        folder.mkdir(parents=True)
        for scene in range(num_pairs):
            mosaic = rng.integers(480, top, (ROWS, COLUMNS), dtype=np.uint16)
            write_dng(folder / f"{stem.format(scene)}.ARW", mosaic, exposure=exposure)
    return root


class Took(NamedTuple):
    """Seconds on the clock, and of the processor (what others do meanwhile does not count)."""

    wall: float
    cpu: float


def timed(call: Callable[[], T]) -> tuple[Took, T]:
    """How long a call takes, and what it returns."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = call()
    return Took(time.perf_counter() - wall, time.process_time() - cpu), value


def seconds(call: Callable[[], object]) -> float:
    return timed(call)[0].wall


def median(taken: Iterable[Took]) -> Took:
    walls, cpus = zip(*taken, strict=True)
    return Took(statistics.median(walls), statistics.median(cpus))


def stored_crop(store: Store, frames: Iterable[Frame], place: Place) -> list[torch.Tensor]:
    """The crop of both files of a pair, from the store."""
    return [cut(store, frame, place, size=CROP) for frame in frames]


def decoded_whole(paths: Iterable[Path]) -> list[NDArray[np.float32]]:
    """Both files whole, to cut all their crops from."""
    return [normalize(read_raw(path)) for path in paths]


def decoded_crop(paths: Iterable[Path], place: Place) -> list[NDArray[np.float32]]:
    """The crop of both files of a pair, from the camera files."""
    rows = slice(2 * place.top, 2 * (place.top + CROP))
    columns = slice(2 * place.left, 2 * (place.left + CROP))
    crops: list[NDArray[np.float32]] = []
    for path in paths:
        raw = read_raw(path)
        planes = pack(raw.mosaic[rows, columns], raw.pattern).astype(np.float32)
        crops.append(np.clip((planes - 512) / (16383 - 512), 0, 1))
    return crops


def compare(store: Store, root: Path, *, num_crops: int) -> dict[str, list[Took]]:
    """Seconds for each of the same crops, by each way."""
    items = [(pair, place) for pair in store.pairs for place in tiles(store.longs[0], size=CROP)]
    times: dict[str, list[Took]] = {"store": [], "decoding": [], "decoding once for eight": []}
    for number in np.random.default_rng(1).permutation(len(items))[:num_crops]:
        pair, place = items[number]
        frames = (store.frame(pair.short, role="short"), store.frame(pair.long, role="long"))
        paths = [root / "Sony" / frame.role / frame.name for frame in frames]
        took, kept = timed(partial(stored_crop, store, frames, place))
        times["store"].append(took)
        took, made = timed(partial(decoded_crop, paths, place))
        times["decoding"].append(took)
        took, _ = timed(partial(decoded_whole, paths))
        times["decoding once for eight"].append(Took(took.wall / 8, took.cpu / 8))
        for ours, theirs in zip(kept, made, strict=True):
            assert np.array_equal(ours.numpy(), theirs)
    return times


def forms(folder: Path) -> tuple[float, float]:
    """Seconds to read a crop of a mosaic, and of packed planes, as uint16 in memory."""
    mosaic = np.random.default_rng(0).integers(0, 16383, (ROWS, COLUMNS), dtype=np.uint16)
    np.save(folder / "mosaic.npy", mosaic)
    np.save(folder / "packed.npy", pack(mosaic, ((0, 1), (3, 2))))
    whole, packed = [], []
    for place in [(r, c) for r in (200, 712) for c in (40, 552, 1064, 1576)] * 5:
        r, c = place

        def read_mosaic(r: int = r, c: int = c) -> object:
            kept = np.load(folder / "mosaic.npy", mmap_mode="r")
            return np.array(kept[2 * r : 2 * r + 2 * CROP, 2 * c : 2 * c + 2 * CROP])

        def read_packed(r: int = r, c: int = c) -> object:
            kept = np.load(folder / "packed.npy", mmap_mode="r")
            return np.array(kept[:, r : r + CROP, c : c + CROP])

        whole.append(seconds(read_mosaic))
        packed.append(seconds(read_packed))
    return statistics.median(whole), statistics.median(packed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--crops", type=int, default=24)
    parser.add_argument("--processes", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, rawpy {rawpy.__version__}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as name:
        root = make_folder(Path(name) / "sid", num_pairs=asked.pairs)
        out = Path(name) / "store"
        took = seconds(lambda: prepare(find_dataset(root), out, processes=asked.processes))
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak, cpu = used.ru_maxrss / 2**10, used.ru_utime + used.ru_stime
        size = sum(path.stat().st_size for path in out.rglob("*.npy")) / 1e6
        print(
            f"prepare: {2 * asked.pairs} files of {ROWS}x{COLUMNS} in {took:.1f} s "
            f"({cpu:.1f} s of the processor, starting included), {size:.0f} MB, largest process "
            f"{peak:.0f} MiB"
        )
        store = Store(out)
        took = seconds(lambda: verify_store(store))
        print(f"verify: {took:.1f} s ({took / 2 / asked.pairs:.2f} s a file)")
        times = compare(store, root, num_crops=asked.crops)
        medians = {way: median(taken) for way, taken in times.items()}
        store_took = medians["store"]
        print("milliseconds for a crop (short and long), and how many times the store's:")
        for way, took in medians.items():
            print(
                f"  {way:24} {1e3 * took.wall:7.1f} ms {took.wall / store_took.wall:6.1f}x   "
                f"of the processor {1e3 * took.cpu:7.1f} ms {took.cpu / store_took.cpu:6.1f}x"
            )
        source = PairSource(store, split="train-first", crop=CROP)
        took = median([timed(partial(source.batch, k))[0] for k in range(asked.crops)])
        print(
            f"a training batch of one, turned and amplified: {1e3 * took.wall:.1f} ms, of the "
            f"processor {1e3 * took.cpu:.1f} ms"
        )
        whole, packed = forms(Path(name))
        print(f"raw crop of a mosaic {1e3 * whole:.2f} ms, of packed planes {1e3 * packed:.2f} ms")


if __name__ == "__main__":
    main()
