"""The errors that eslkit raises.

```
EslError
├── InputError          an argument, a file or a folder that cannot be used
├── TraceError          the model could not be run on the example inputs
├── UnsupportedError    the model has no part of the kind that was asked for
├── ResizeError         widths that cannot be, or that the model's own code refuses
│   └── DepthError      a level that cannot be inserted or taken out
├── PlanError           a plan that is malformed, of another version or of another model
├── StoreError          a run folder that is damaged, foreign or not writable
└── TrainingError       a training that failed, or returned something that is not finite
```

Every message says what was wrong (the value), where (the layer's qualified name, the
operation and its source line), what was expected, and how to mend it.
"""

from __future__ import annotations

__all__ = [
    "DepthError",
    "EslError",
    "InputError",
    "PlanError",
    "ResizeError",
    "StoreError",
    "TraceError",
    "TrainingError",
    "UnsupportedError",
]


class EslError(Exception):
    """The root of all errors raised by eslkit."""


class InputError(EslError):
    """An argument, a file or a folder that cannot be used."""


class TraceError(EslError):
    """The model could not be run on the example inputs."""


class UnsupportedError(EslError):
    """The model has no part of the kind that was asked for."""


class ResizeError(EslError):
    """Widths that cannot be, or that the model's own code refuses."""


class DepthError(ResizeError):
    """A level that cannot be inserted or taken out."""


class PlanError(EslError):
    """A plan that is malformed, of another version, or made for another model."""


class StoreError(EslError):
    """A run folder that is damaged, belongs to another plan, or cannot be written."""


class TrainingError(EslError):
    """A training that failed, or returned something that is not finite."""
