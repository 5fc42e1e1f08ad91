"""`python -m benchmarks.pays run|show|draw|write|time`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks.pays.page import PAGES, filled
from benchmarks.pays.study import carry_out_all, runs_of
from benchmarks.pays.tables import TABLES
from benchmarks.pays.tasks import digest
from benchmarks.pays.timing import times


def show(part: str) -> None:
    for name, (of, table) in TABLES.items():
        if of == part:
            print(f"\n{name}\n\n{table(part)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "show", "draw", "write", "time"])
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--data", default="packaged")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--hours", type=float, default=1e9)
    parser.add_argument("--only", default="", help="a pattern: 'denoise 4-8-16 16000 .* seed 0'")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="for draw")
    asked = parser.parse_args()
    if asked.what == "draw":
        from benchmarks.pays.figures import draw  # needs matplotlib

        for part in asked.parts:
            for path in draw(asked.out, part):
                print(path)
        return
    if asked.what == "write":
        for page in PAGES:
            page.write_text(filled(page.read_text("utf-8")), "utf-8")
        return
    if asked.what == "time":
        print("\n".join(times(asked.data)))
        return
    if asked.what == "show":
        for part in asked.parts:
            show(part)
        return
    data = {name: digest(name, asked.data) for name in ("denoise", "segment")}
    runs = [
        run
        for part in asked.parts
        for run in runs_of(part, data)
        if re.match(asked.only, f"{run.task} {run.size} {run.budget} {run.name} seed {run.seed}")
    ]
    for record in carry_out_all(
        runs, data=asked.data, processes=asked.processes, hours=asked.hours
    ):
        figure = {name: round(value, 3) for name, value in record["test"].items()}
        print(
            f"{record['task']} {record['size']} {record['budget']} {record['name']} seed "
            f"{record['seed']}: {figure} ({record['seconds']} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
