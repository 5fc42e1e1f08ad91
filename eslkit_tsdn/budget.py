"""What a training may cost, and how and where it is run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Budget", "Machine"]


class Budget(BaseModel):
    """One training of one network, apart from the network and the data."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    iterations: int = Field(ge=1)
    """Optimizer updates; the learning rate is halved at half of them, and a tenth for the last
    sixth."""
    lr: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    """Learning rate at the start."""
    weights: tuple[float, ...] | None = None
    """One factor per stage, the paper's (alpha, beta); None for all 1."""
    precision: Literal["32", "bf16"] = "32"
    """`bf16` computes the network in bfloat16 and keeps weights and losses in float32."""
    channels_last: bool = True
    """Memory layout of convolutions; faster on CPUs and modern GPUs."""
    compiled: bool = False
    """Whether the network goes through torch.compile."""
    fused: bool = False
    """Whether Adam updates all parameters in one kernel."""


class Machine(BaseModel):
    """Where a training runs.

    It changes how long a training takes. What an update sees it changes only through the number
    of processes, each of which draws batches of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where there is one."""
    devices: int = Field(default=1, ge=1)
    """Processes on this machine, each with a GPU of its own (or all on the CPU)."""
    num_nodes: int = Field(default=1, ge=1)
    """Machines."""
    strategy: str = "auto"
    """Lightning's name of how processes train together, as `ddp`."""
    workers: int = Field(default=0, ge=0)
    """Processes that prepare batches ahead; 0 prepares each in the training process."""

    @property
    def num_processes(self) -> int:
        """Processes in all; an update sees one batch of each."""
        return self.devices * self.num_nodes
