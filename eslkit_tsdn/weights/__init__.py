"""Networks on disk: written, found, and read from wherever they lie."""

from __future__ import annotations

from eslkit_tsdn.models.architectures import ARCHITECTURES, Architecture
from eslkit_tsdn.weights.folders import load_network
from eslkit_tsdn.weights.network_file import (
    NETWORK_FILE,
    describe_network,
    read_metadata,
    save_network,
)
from eslkit_tsdn.weights.shipped import DEMO_FOLDER, find_weights

__all__ = [
    "ARCHITECTURES",
    "DEMO_FOLDER",
    "NETWORK_FILE",
    "Architecture",
    "describe_network",
    "find_weights",
    "load_network",
    "read_metadata",
    "save_network",
]
