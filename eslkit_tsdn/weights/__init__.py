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
from eslkit_tsdn.weights.shipped import HELPS_FROM, MODEL_CARD, SHIPPED, find_weights

__all__ = [
    "ARCHITECTURES",
    "HELPS_FROM",
    "MODEL_CARD",
    "NETWORK_FILE",
    "SHIPPED",
    "Architecture",
    "describe_network",
    "find_weights",
    "load_network",
    "read_metadata",
    "save_network",
]
