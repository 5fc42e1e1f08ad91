"""Which of several processes this one is, when a schedule runs on many.

Every rank walks the same schedule; surgery is deterministic, so all build the same networks.
Rank 0 alone writes the run's folder; the others read there that a step is finished.
"""

from __future__ import annotations

import os

import torch.distributed as dist

__all__ = ["rank"]

# torchrun, SLURM and Lightning's own launcher, in the order in which they are believed.
_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def rank() -> int:
    """The number of this process among those that train together; 0 when it is alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    for name in _VARIABLES:
        value = os.environ.get(name, "")
        if value.isdigit() and (name != "SLURM_PROCID" or _in_slurm_step()):
            return int(value)
    return 0


def _in_slurm_step() -> bool:
    """SLURM sets its variables in interactive shells too; only `srun` starts several tasks."""
    return os.environ.get("SLURM_NTASKS", "1") not in ("", "1")
