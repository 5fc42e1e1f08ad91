"""Damaged camera files and list files: each is read, or refused with one sentence.

Camera files (real ones, and DNGs made here) and list files are mutated at random: bytes, tags,
lengths, blocks, two files spliced. Every camera file goes through `read_raw` in the process that
`eslkit-tsdn prepare` decodes in, so that a crash or a hang of native code is seen and counted;
every list file through `read_list` and `find_dataset`; some folders through `prepare`.

    python benchmarks/fuzz_raw.py --files 2000 --lists 2000 --folders 20 [--raw DIR]

Exit code 1 where anything crashed, hung, or ended in a traceback. What crashed is kept in --keep.
"""

from __future__ import annotations

import argparse
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rawpy

from eslkit.errors import InputError, StoreError
from eslkit_tsdn.data.decoder import Decoder
from eslkit_tsdn.data.prepare import BadFilesError, prepare
from eslkit_tsdn.data.sid import read_list
from eslkit_tsdn.data.sid_folder import find_dataset
from eslkit_tsdn.data.store import verify_store
from tests.eslkit_tsdn.damage import list_file, made_dngs, made_raws, mutated, outcome

LIMIT_S = 20.0


def fuzz_files(
    seeds: Sequence[bytes], *, num: int, seed: int, processes: int, folder: Path, keep: Path
) -> Counter[str]:
    """Mutated camera files through the decoder's processes."""

    def share(which: int) -> Counter[str]:
        found: Counter[str] = Counter()
        with Decoder(folder / f"store{which}", limit_s=LIMIT_S) as decoder:
            for number in range(which, num, processes):
                path = folder / f"00001_00_{which + 1}s.ARW"
                path.write_bytes(mutated(seeds, random.Random(f"{seed}/{number}")))
                what = outcome(decoder, path)
                found[what] += 1
                if what not in ("read", "refused"):
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, keep / f"{number:05d}.ARW")
        return found

    with ThreadPoolExecutor(processes) as pool:
        return sum(pool.map(share, range(processes)), Counter())


def fuzz_lists(*, num: int, seed: int, folder: Path) -> Counter[str]:
    """Damaged list files, alone and in a folder."""
    found: Counter[str] = Counter()
    (folder / "Sony" / "long").mkdir(parents=True)
    (folder / "Sony" / "long" / "00001_00_10s.ARW").write_bytes(b"")
    path = folder / "Sony_train_list.txt"
    for number in range(num):
        path.write_bytes(list_file(random.Random(f"list/{seed}/{number}")))
        for read in (read_list, lambda path: find_dataset(path.parent)):
            found[tried(read, path)] += 1
    return found


def tried(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except InputError as error:
        return "refused" if str(path) in str(error) else f"names no file: {error}"
    except Exception as error:  # noqa: BLE001 - what is looked for
        return f"traceback: {error!r:.100}"
    return "read"


def fuzz_folders(
    seeds: Sequence[bytes], *, num: int, seed: int, processes: int, folder: Path
) -> Counter[str]:
    """Whole datasets of mutated files through prepare, with and without --skip-bad."""
    found: Counter[str] = Counter()
    for number in range(num):
        rng = random.Random(f"folder/{seed}/{number}")
        root, out = folder / f"sid{number}", folder / f"out{number}"
        for role, times in (("short", ("0.1", "0.04")), ("long", ("10",))):
            (root / "Sony" / role).mkdir(parents=True)
            for scene in range(4):
                for exposure in times:
                    whole = rng.choice(seeds) if rng.random() < 0.4 else mutated(seeds, rng)
                    (root / "Sony" / role / f"{scene:05d}_00_{exposure}s.ARW").write_bytes(whole)
        found[prepared(root, out, processes=processes)] += 1
        shutil.rmtree(root)
        shutil.rmtree(out, ignore_errors=True)
    return found


def prepared(root: Path, out: Path, *, processes: int) -> str:
    try:
        dataset = find_dataset(root)
        try:
            prepare(dataset, out, processes=processes, limit_s=LIMIT_S)
        except BadFilesError:
            store = prepare(dataset, out, processes=processes, limit_s=LIMIT_S, skip_bad=True)
            return "skipped some" if not verify_store(store) else "store is unsound"
    except (InputError, StoreError):
        return "refused"
    except Exception as error:  # noqa: BLE001 - what is looked for
        return f"traceback: {error!r:.100}"
    return "read"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--lists", type=int, default=2000)
    parser.add_argument("--folders", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--raw", type=Path, default=Path("../shared/data/raw"))
    parser.add_argument("--keep", type=Path, default=Path("fuzz-raw-found"))
    asked = parser.parse_args()
    real = [path.read_bytes() for path in sorted(asked.raw.rglob("*.*")) if path.suffix.isupper()]
    print(f"Python {platform.python_version()}, rawpy {rawpy.__version__}, {len(real)} real files")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = made_dngs(folder)
        # Real files twice as often; the makers' own codings are noise, and mostly refused.
        seeds = [*real, *real, *made, *random.Random(0).sample(made_raws(folder), 12)]
        common = {"seed": asked.seed, "processes": asked.processes, "folder": folder}
        results = {
            "camera files": fuzz_files(seeds, num=asked.files, keep=asked.keep, **common),
            "list files (each read twice)": fuzz_lists(
                num=asked.lists, seed=asked.seed, folder=folder / "lists"
            ),
            "folders": fuzz_folders(made, num=asked.folders, **common),
        }
    sound = {"read", "refused", "skipped some"}
    for what, found in results.items():
        print(f"{what}:")
        for kind, number in sorted(found.items()):
            print(f"  {number:6d} {kind}")
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if all(set(found) <= sound for found in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
