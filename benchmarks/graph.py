"""Trace, widen and halve strangers' networks, beside Torch-Pruning on the same networks.

Every network is measured in processes of its own with a time-out, on one thread; what is measured
already (in the JSON file) is not measured again.

    python benchmarks/graph.py --only "monai/*"
    python benchmarks/graph.py --report
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Row = dict[str, Any]


def main() -> None:
    options = _options()
    if options.worker:
        _work(options.worker, options.part)
        return
    rows: dict[str, Row] = {}
    if options.out.exists():
        rows = {row["name"]: row for row in json.loads(options.out.read_text())}
    if not options.report:
        _measure_all(options, rows)
    chosen = [row for name, row in rows.items() if fnmatch.fnmatchcase(name, options.only)]
    if not chosen:
        print("no network of a stranger is installed: pip install -e '.[models]'")
        return
    print(report(chosen))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="pattern of names, such as monai/*")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "graph.json")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one network")
    parser.add_argument("--again", action="store_true", help="measure again what is measured")
    parser.add_argument("--failed", action="store_true", help="measure again what failed")
    parser.add_argument("--no-rival", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--report", action="store_true", help="only print what is measured")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--part", default="eslkit", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure_all(options: argparse.Namespace, rows: dict[str, Row]) -> None:
    from benchmarks.strangers import networks

    names = [name for name, _, _ in networks(options.only)]
    for number, name in enumerate(names):
        old = rows.get(name, {})
        parts = ["eslkit"] if options.again or "trace" not in old else []
        if options.failed and not _covered(old):
            parts = ["eslkit"]
        if not options.no_rival and (options.again or "rival" not in old):
            parts.append("rival")
        for part in parts:
            made = _in_process(name, part, options.timeout)
            kept = {k: v for k, v in old.items() if k.startswith("rival") != (part == "rival")}
            old = rows[name] = {"name": name, **kept, **made}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(list(rows.values()), indent=1))
            print(f"{number + 1}/{len(names)} {name} {part}: {_short(made, part)}", flush=True)


def _in_process(name: str, part: str, timeout: float) -> Row:
    command = [sys.executable, __file__, "--worker", name, "--part", part]
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    phase = "trace" if part == "eslkit" else "rival"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={**os.environ, **one},
        )
    except subprocess.TimeoutExpired:
        return {phase: f"crash: more than {timeout:g} seconds"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        tail = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        return {phase: f"crash: the process ended with {done.returncode}: {tail[:300]}"}
    return json.loads(lines[-1][len("RESULT ") :])


def _work(name: str, part: str) -> None:
    warnings.simplefilter("ignore")
    from benchmarks.strangers import networks
    from benchmarks.strangers.rival import measure_rival
    from benchmarks.strangers.trial import measure

    stranger = next(networks(name.replace("[", "[[]")))
    made = measure(stranger) if part == "eslkit" else measure_rival(stranger)
    print("RESULT " + json.dumps(made), flush=True)


def _covered(row: Row) -> bool:
    phases = ("trace", "expand", "expand_trains", "shrink", "shrink_trains", "back")
    return all(row.get(phase) == "ok" for phase in phases)


def _crashed(row: Row) -> bool:
    ours = (value for key, value in row.items() if not key.startswith("rival"))
    return any(isinstance(value, str) and value.startswith("crash") for value in ours)


def _short(row: Row, part: str) -> str:
    if part == "rival":
        return f"{row.get('rival_trains', row.get('rival'))} {row.get('rival_ratio', '')}"
    bad = [f"{k}: {v}" for k, v in row.items() if isinstance(v, str) and k != "name" and v != "ok"]
    facts = [
        row.get(k) for k in ("shrink_ratio", "narrow_error", "preserve_error", "trace_seconds")
    ]
    return " | ".join([*bad, f"ratio, law 3, law 4, seconds: {facts}"])


def report(rows: Sequence[Row]) -> str:
    """A line for each network, and the figures over all."""
    head = ("network", "params", "ok", "ratio", "used", "mixed", "law 3", "law 4", "trace s")
    lines = ["| " + " | ".join((*head, "halve s", "memory", "rival", "ratio", "s")) + " |"]
    lines.append("|" + "---|" * (len(head) + 5))
    lines.extend("| " + " | ".join(_cells(row)) + " |" for row in rows)
    return "\n".join([*lines, "", *_summary(rows)])


def _cells(row: Row) -> list[str]:
    def number(key: str, form: str = ".3g") -> str:
        return format(row[key], form) if isinstance(row.get(key), (int, float)) else "-"

    return [
        row["name"],
        number("parameters", ","),
        "yes" if _covered(row) else "NO",
        number("shrink_ratio"),
        number("shrink_ratio_used"),
        f"{row.get('mixed', '-')}/{row.get('resizable', '-')}",
        number("narrow_error", ".0e"),
        number("preserve_error", ".0e"),
        number("trace_seconds"),
        number("shrink_seconds"),
        f"{_memory_ratio(row):.2f}",
        "yes" if row.get("rival") == row.get("rival_trains") == "ok" else "NO",
        number("rival_ratio"),
        number("rival_seconds"),
    ]


def _memory_ratio(row: Row) -> float:
    own = row.get("own_memory", 0)
    most = max(row.get(f"{phase}_memory", 0) for phase in ("trace", "shrink"))
    return most / own if own else 0.0


def _summary(rows: Sequence[Row]) -> list[str]:
    whole = len(rows)
    covered = [row for row in rows if _covered(row)]
    rival = [row for row in rows if row.get("rival") == row.get("rival_trains") == "ok"]
    exact = [row for row in rows if row.get("exact") == "ok"]

    def spread(key: str, of: Sequence[Row]) -> str:
        held = sorted(row[key] for row in of if isinstance(row.get(key), (int, float)))
        if not held:
            return "nothing measured"
        ninth = held[min(len(held) - 1, int(0.9 * len(held)))]
        return f"median {statistics.median(held):.3g}, 90 % {ninth:.3g}, worst {held[-1]:.3g}"

    mixed = sum(row.get("mixed", 0) for row in rows)
    groups = sum(row.get("resizable", 0) for row in rows)
    laws = {
        law: sum(1 for row in exact if row[f"{law}_error"] < 1e-8) for law in ("narrow", "preserve")
    }
    return [
        f"networks: {whole}",
        f"traced: {sum(row.get('trace') == 'ok' for row in rows)}",
        f"widened, halved, trained, and back to the same shapes: {len(covered)}",
        f"crashes outside eslkit's errors: {sum(map(_crashed, rows))}",
        f"ratio of parameters after halving: {spread('shrink_ratio', covered)}",
        f"... of those that the forward pass uses: {spread('shrink_ratio_used', covered)}",
        f"law 3 below 1e-8: {laws['narrow']} of {len(exact)}; "
        f"law 4: {laws['preserve']} of {len(exact)}",
        f"groups left out of both because something mixes their channels: {mixed} of {groups}",
        f"seconds, trace: {spread('trace_seconds', rows)}",
        f"seconds, expand: {spread('expand_seconds', covered)}",
        f"seconds, shrink: {spread('shrink_seconds', covered)}",
        f"peak memory against the model's own forward: "
        f"{spread('memory', [{'memory': _memory_ratio(row)} for row in covered])}",
        f"Torch-Pruning halves and trains: {len(rival)}; ratio {spread('rival_ratio', rival)}; "
        f"seconds {spread('rival_seconds', rival)}",
    ]


if __name__ == "__main__":
    main()
