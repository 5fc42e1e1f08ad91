"""The weights that come with eslkit: what a command uses when its user names none.

A `TSDN` of the paper's size, trained by `eslkit-tsdn train --preset shipped` on photographs with
the drawn noise of a Sony A7S II. `tsdn-sony.md`, beside the file, is its model card.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["HELPS_FROM", "MODEL_CARD", "SHIPPED", "find_weights"]

SHIPPED = Path(__file__).with_name("tsdn-sony.safetensors")
"""The file of weights."""

HELPS_FROM = 48.0
"""Below this exposure ratio they may take away more than noise: at 48 they gain 1.5 to 2.8 dB, at
32 they gain or lose with the picture, at 16 they cost 2.5 to 3.1 (`benchmarks/shipped.py`)."""

MODEL_CARD = Path(__file__).with_name("tsdn-sony.md")
"""What they were trained on, what they reach, what they are not for; Markdown."""


def find_weights(given: str | Path | None = None) -> Path:
    """Where the weights are that a command uses.

    Args:
        given: what the user named; None for those that come with eslkit.
    """
    return SHIPPED if given is None else Path(given)
