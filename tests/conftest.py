"""What every test starts from: one thread, and drawn examples that do not hang on the clock."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch

# Deadlines measure the machine, not the code. In CI the drawn examples are the same every time,
# so that a red run can be repeated; at a developer's desk they are new ones every time.
hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_configure() -> None:
    """Give torch one thread: the test processes share the cores, and sums keep their order."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_start() -> None:
    """Seed torch's global generator, so that no test depends on those that ran before it."""
    torch.manual_seed(0)
