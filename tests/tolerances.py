"""The one table of tolerances: how far a number may lie from what it must be, and why.

A test takes its tolerance from here by name. Exact things (keys, shapes, indices, bits) are
compared with `==` or `torch.equal` and need none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["FLOAT32_FORWARD", "MASKED", "PRESERVED", "REFERENCE", "SOLVED", "Tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """How close two tensors must be: `|actual - expected| <= absolute + relative * |expected|`."""

    absolute: float
    relative: float
    why: str

    def check(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        """Raise AssertionError, with the largest deviation, if `actual` is too far off."""
        torch.testing.assert_close(actual, expected, atol=self.absolute, rtol=self.relative)


MASKED = Tolerance(
    1e-10,
    1e-10,
    "law 3, float64: a narrowed network against the masked one; only the order of the sums differs",
)
PRESERVED = Tolerance(
    1e-8,
    1e-8,
    "law 4, float64: duplicated channels are divided by their number, which rounds in every layer",
)
REFERENCE = Tolerance(
    1e-10,
    1e-10,
    "float64: our formula against an independent one; only the order of the sums differs",
)
SOLVED = Tolerance(
    1e-6,
    1e-6,
    "float64: a system solved by conjugate gradients against a dense solver; the normal equations "
    "square its condition number",
)
FLOAT32_FORWARD = Tolerance(
    1e-5,
    1e-4,
    "float32: one network computed in two ways; single precision through some twenty layers",
)
