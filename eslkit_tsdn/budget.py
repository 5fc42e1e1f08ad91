"""What a training may cost, and how it is run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Budget"]


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
