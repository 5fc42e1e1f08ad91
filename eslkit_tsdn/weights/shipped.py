"""The weights that a command uses when its user names none."""

from __future__ import annotations

from pathlib import Path

from eslkit.errors import InputError
from eslkit.store import RunStore
from eslkit_tsdn.weights.network_file import NETWORK_FILE

__all__ = ["DEMO_FOLDER", "find_weights"]

DEMO_FOLDER = Path("runs/demo")
"""Where `eslkit-tsdn demo` leaves its networks unless it is told otherwise."""


def find_weights(given: str | Path | None = None) -> Path:
    """Where the weights are that a command uses when its user names none.

    Args:
        given: what the user named; it is returned as it is.

    Returns:
        `given`, or else the folder of the demo below the working directory.

    Raises:
        InputError: none are named, and there is no finished demo.
    """
    if given is not None:
        return Path(given)
    if RunStore(DEMO_FOLDER / "esl").exists() or (DEMO_FOLDER / NETWORK_FILE).is_file():
        return DEMO_FOLDER
    raise InputError(
        f"There are no weights: none were named, and {DEMO_FOLDER} (below {Path.cwd()}) holds no "
        "run of the demo. Name a file or a run's folder with --weights, or train a small network "
        "first: `eslkit-tsdn demo` takes about six minutes on two cores."
    )
