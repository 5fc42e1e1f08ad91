"""Where recipes become trained networks: pictures, schedules and networks of one process."""

from __future__ import annotations

import platform
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata

import torch
from torch import nn

from eslkit.errors import StoreError
from eslkit.steps import apply_step
from eslkit.store import tensors_of
from eslkit_tsdn.evaluation import means, measured, restore
from eslkit_tsdn.metrics import PROTOCOLS
from eslkit_tsdn.recipes.networks import build, costs
from eslkit_tsdn.recipes.values import Recipe
from eslkit_tsdn.recipes.walks import Planner, example_input
from eslkit_tsdn.tables.methods import METHODS, Job
from eslkit_tsdn.tables.pictures import Pictures
from eslkit_tsdn.tables.runs import Record, RunsFolder

__all__ = ["Workshop", "versions"]

KEPT = 4
"""Trained networks that a workshop keeps in memory, so that a walk need not be rebuilt from its
start for every step; what it does not keep it reads from the runs."""


class Workshop:
    """Carries recipes out, one at a time.

    Args:
        runs: where everything is kept.
        pictures: what is learnt from and tested on.
        planner: makes the schedules again that recipes name.
        listener: is told a recipe, updates made, and the loss.
    """

    def __init__(
        self,
        runs: RunsFolder,
        pictures: Pictures,
        *,
        planner: Planner,
        listener: Callable[[Recipe, int, float], None] | None = None,
    ) -> None:
        self.runs, self.pictures, self.planner = runs, pictures, planner
        self._listener = listener
        self._networks: OrderedDict[str, nn.Module] = OrderedDict()

    def carry_out(self, recipe: Recipe) -> Record:
        """Train the network of a recipe and measure it, unless that was done before.

        Raises:
            StoreError: the folder cannot be written, a training before is missing or damaged, or
                another process is working on this one.
            TrainingError: the training diverged.
        """
        if self.runs.is_finished(recipe):
            return self.runs.record(recipe)
        lock = self.runs.lock(recipe)
        lock.acquire(patience=0)
        try:
            if self.runs.is_finished(recipe):  # by the process that has just given it back
                return self.runs.record(recipe)
            return self._train(recipe)
        finally:
            lock.release()

    def _train(self, recipe: Recipe) -> Record:
        folder, began = self.runs.begin(recipe), time.monotonic()
        job = Job(
            recipe=recipe,
            start=self._start(recipe),
            before=tuple(self.trained(earlier) for earlier in recipe.before),
            source=self.pictures.source(recipe.data, f"{recipe.seed}/{recipe.num_before}"),
            folder=folder,
            listener=self._told(recipe),
        )
        done = METHODS[recipe.method](job)
        network = done.network
        seconds = time.monotonic() - began
        parameters, macs = costs(network) if recipe.network else (0, 0)
        weights = tensors_of(network) if recipe.network else {}
        record = Record(
            id=recipe.id,
            metrics=measure(network, self.pictures),
            parameters=parameters,
            macs=macs,
            training_flops=float(done.cost.flops),
            iterations=done.cost.iterations,
            seconds=round(seconds, 2),
            versions=versions(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            weights_sha256=self.runs.keep(recipe, weights),
        )
        self.runs.finish(recipe, record)
        self._keep(recipe, network)
        return record

    def trained(self, recipe: Recipe) -> nn.Module:
        """The trained network of a finished recipe, in training mode; not to be changed.

        Raises:
            StoreError: it is not finished, or its weights are damaged or of another form.
        """
        if recipe.id in self._networks:
            self._networks.move_to_end(recipe.id)
            return self._networks[recipe.id]
        network = self._start(recipe)
        try:
            network.load_state_dict(self.runs.weights(recipe), strict=True)
        except RuntimeError as error:
            raise StoreError(
                f"The weights in {self.runs.of(recipe)} do not fit the network that this version "
                f"builds ({error}). Remove that folder to train it again."
            ) from error
        self._keep(recipe, network)
        return network

    def _keep(self, recipe: Recipe, network: nn.Module) -> None:
        self._networks[recipe.id] = network.train()
        while len(self._networks) > KEPT:
            self._networks.popitem(last=False)

    def _start(self, recipe: Recipe) -> nn.Module:
        """The network of a recipe before its training."""
        if recipe.network is None:
            return nn.Identity()
        if recipe.plan is None:
            return build(recipe.network, seed=recipe.seed)
        plan = self.planner.plan(recipe.plan, seed=recipe.seed)
        step = plan.steps[recipe.index - 1]
        small = build(recipe.network, seed=recipe.seed)
        earlier = self.trained(recipe.before[0]) if recipe.before else small
        return apply_step(earlier, step, plan=plan, example_inputs=example_input(recipe.network))

    def _told(self, recipe: Recipe) -> Callable[[int, float], None] | None:
        listener = self._listener
        return None if listener is None else lambda done, loss: listener(recipe, done, loss)


def measure(network: nn.Module, pictures: Pictures) -> dict[str, float]:
    """Means over the test pictures by ELD's protocol; these were cut to their centre before.

    Args:
        network: gives one image of the shape of its input in inference.
        pictures: has the test pictures.

    Returns:
        `psnr_x100` (dB), `ssim_x100` and all else that `eslkit_tsdn.evaluation.measured` gives.
    """
    has_weights = any(True for _ in network.parameters())
    found = measured(
        network,
        pictures.pairs,
        protocol=PROTOCOLS["eld-full"],
        restore=restore if has_weights else lambda method, noisy: method(noisy),
    )
    return means(found)


def versions() -> dict[str, str]:
    """What a record's numbers were computed with."""
    return {
        "eslkit": metadata.version("eslkit"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
