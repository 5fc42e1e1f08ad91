"""Prepares a folder with a pause after every file: for a test that kills it halfway."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from eslkit_tsdn.data.prepare import prepare
from eslkit_tsdn.data.sid_folder import find_dataset

if __name__ == "__main__":
    prepare(
        find_dataset(sys.argv[1]),
        Path(sys.argv[2]),
        processes=1,
        progress=lambda done, total: time.sleep(0.2),
    )
