"""A tiny schedule whose surgery is done by hand: a plan, a model, a trainer for the driver's tests.

Run as a script it walks the schedule into a folder, to be killed from outside:
`python small_walk.py FOLDER ITERATIONS PAUSE`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from eslkit.driver import Event, walk
from eslkit.manifest import StepRecord
from eslkit.plan import LayerInfo, Plan, Step, fingerprint
from eslkit.store import RunStore
from eslkit.trainer import StepContext, as_trainer

WIDTHS = (12, 9, 6)


class Small(nn.Module):
    """Two linear layers with a norm that has integer and floating buffers."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def small_model(seed: int = 0) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Small()


def small_plan(*, seed: int = 0, iterations: int | None = 4) -> Plan:
    model = small_model()
    steps = tuple(
        Step(
            index=index,
            name=("EL", "CSL1", "CSL2")[index - 1],
            phase="expand" if index == 1 else "channels",
            width=2.0 if index == 1 else None,
            widths={"first": width},
            layers=2,
            init="random" if index == 1 else "first",
            parameters=sum(p.numel() for p in Small(width).parameters()),
            macs=5 * width,
            iterations=iterations,
            seed=seed + index,
            picture=(
                LayerInfo(name="first", kind="conv", level=0, width=width),
                LayerInfo(name="last", kind="conv", level=0, width=2),
            ),
        )
        for index, width in enumerate(WIDTHS, start=1)
    )
    return Plan(
        model="small_walk.Small",
        width=2.0,
        depth=0,
        init="first",
        granularity="fine",
        expand_init="random",
        inputs=((4, 3),),
        fingerprint=fingerprint(model),
        base_parameters=sum(p.numel() for p in model.parameters()),
        base_macs=30,
        steps=steps,
    )


def surgery(network: nn.Module, step: Step) -> nn.Module:
    """A network of the step's width; what both have in common is taken over."""
    width = step.widths["first"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step.seed)
        target = Small(width)
    source = network.state_dict()
    with torch.no_grad():
        for key, tensor in target.state_dict().items():
            cut = tuple(
                slice(0, min(a, b)) for a, b in zip(tensor.shape, source[key].shape, strict=False)
            )
            tensor[cut] = source[key][cut]
    return target


class Loop:
    """A plain loop on random data that keeps a checkpoint after every iteration."""

    def __init__(self, *, pause: float = 0.0) -> None:
        self.pause = pause
        self.fitted: list[str] = []

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
        self.fitted.append(step.name)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        done = 0
        checkpoint = None if step.folder is None else step.folder / "last.pt"
        if checkpoint is not None and checkpoint.exists():
            saved = torch.load(checkpoint)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            torch.set_rng_state(saved["random"])
            done = saved["done"]
        loss = torch.zeros(())
        for iteration in range(done, step.iterations or 1):
            x = torch.randn(4, 3)
            loss = (model(x) - x[:, :2]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(self.pause)
            if checkpoint is not None:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "random": torch.get_rng_state(),
                    "done": iteration + 1,
                }
                part = checkpoint.with_suffix(".part")
                torch.save(state, part)
                part.replace(checkpoint)
        return {"loss": float(loss.detach()) if done < (step.iterations or 1) else 0.0}


Fit = Callable[[nn.Module, StepContext], Mapping[str, float] | None]


def run(
    folder: Path | None,
    trainer: Loop | Fit | None = None,
    *,
    plan: Plan | None = None,
    model: nn.Module | None = None,
    events: list[Event] | None = None,
) -> tuple[nn.Module, tuple[StepRecord, ...]]:
    return walk(
        model or small_model(),
        plan or small_plan(),
        surgery=surgery,
        trainer=as_trainer(trainer or Loop()),
        store=None if folder is None else RunStore(folder),
        callbacks=() if events is None else (events.append,),
    )


def final_bytes(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("steps/*/weights.safetensors"))]


def main(folder: str, iterations: str, pause: str) -> None:
    torch.set_num_threads(1)
    plan = small_plan(iterations=int(iterations))
    trainer = as_trainer(Loop(pause=float(pause)))
    walk(small_model(), plan, surgery=surgery, trainer=trainer, store=RunStore(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
