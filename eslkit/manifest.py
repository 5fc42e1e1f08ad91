"""What a run's folder says about itself: its steps, and the files that it answers for."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["MANIFEST_VERSION", "Manifest", "State", "StepRecord", "StepState", "StoredFile"]

State = Literal["waiting", "running", "interrupted", "failed", "finished"]

MANIFEST_VERSION = 1
"""The version of the manifest's form that this release reads and writes."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StepRecord(_Frozen):
    """What happened in one step."""

    name: str
    """Short name of the step."""
    index: int
    """Place in the plan, counted from 1."""
    metrics: dict[str, float] = {}
    """What the trainer returned."""
    seconds: float = 0.0
    """Wall time of the training that finished the step, in seconds."""
    parameters: int = 0
    """Parameters of the network of the step."""
    macs: int = 0
    """Multiply-accumulates of one forward pass on the plan's inputs."""
    seed: int = 0
    """Seed of the step."""
    versions: dict[str, str] = {}
    """Versions of what the step was trained with."""
    finished: str = ""
    """When it finished, UTC, ISO 8601."""


class StoredFile(_Frozen):
    """One file that the manifest answers for."""

    path: str
    """Path inside the store, with `/`."""
    size: int
    """Bytes."""
    sha256: str
    """SHA-256 of its bytes."""


class StepState(_Frozen):
    """How far one step is."""

    index: int
    """Place in the plan, counted from 1."""
    name: str
    """Short name of the step."""
    state: State = "waiting"
    """How far it is; `running` in a folder that no process holds means it was killed."""
    reason: str = ""
    """Why it was interrupted or failed."""
    files: tuple[StoredFile, ...] = ()
    """Weights and record, once finished."""


class Manifest(_Frozen):
    """What a store holds."""

    version: Literal[1] = MANIFEST_VERSION
    """Version of this form."""
    fingerprint: str
    """Fingerprint of the small model."""
    start: tuple[StoredFile, ...]
    """The plan and the weights that the run started from."""
    steps: tuple[StepState, ...]
    """Every step of the plan."""
    seal: str = ""
    """SHA-256 over all the rest, so that an edit is noticed."""

    def sealed(self) -> Manifest:
        """The same manifest with its seal."""
        return self.model_copy(update={"seal": self.expected_seal()})

    def expected_seal(self) -> str:
        """The seal that belongs to this content."""
        content = self.model_dump(mode="json", exclude={"seal"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
