"""A decoder whose native code crashes, hangs or fails, as the name of the file asks."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from eslkit_tsdn.data import decoder
from eslkit_tsdn.raw import RawImage, read_raw


def read_or_break(path: Path) -> RawImage:
    if path.name.startswith("00001"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.name.startswith("00002"):
        time.sleep(600)
    if path.name.startswith("10034"):
        raise ZeroDivisionError("in a library")
    if path.name.startswith("20005"):
        raise MemoryError
    return read_raw(path)


if __name__ == "__main__":
    decoder.read_raw = read_or_break
    decoder.main(Path(sys.argv[1]))
