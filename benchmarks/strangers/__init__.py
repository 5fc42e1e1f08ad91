"""Networks from public packages, on which the library is tried.

`networks()` yields (name, factory, example inputs) for every package that is installed, each network
of the package's own classes and in its own style, small enough to run in seconds. Nothing here is
special-cased by the library.
"""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
from collections.abc import Iterator

from benchmarks.strangers.inputs import Stranger

__all__ = ["PACKAGES", "Stranger", "networks"]

PACKAGES = {
    "monai": ("monai", "monai_nets"),
    "smp": ("segmentation_models_pytorch", "segmentation"),
    "diffusers": ("diffusers", "diffusion"),
}
"""First word of the names -> the package that must be installed, and the file here."""


def networks(pattern: str = "*") -> Iterator[Stranger]:
    """The networks of the packages that are installed, those whose names fit the pattern."""
    first = pattern.partition("/")[0]
    for word, (package, file) in PACKAGES.items():
        if fnmatch.fnmatchcase(word, first) and importlib.util.find_spec(package):
            family = importlib.import_module(f"benchmarks.strangers.{file}")
            yield from (made for made in family.networks() if _fits(made[0], pattern))


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern)
