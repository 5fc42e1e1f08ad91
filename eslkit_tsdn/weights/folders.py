"""Networks wherever they lie: in a file, or in the folder of a training or of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from eslkit.errors import InputError, StoreError
from eslkit.plan import Step
from eslkit.steps import apply_step
from eslkit.store import RunStore
from eslkit_tsdn.models.architectures import ARCHITECTURES
from eslkit_tsdn.weights.network_file import NETWORK_FILE, from_file, inferred, recognised

__all__ = ["load_network"]


def load_network(
    path: str | Path, *, model: str | None = None, step: str | None = None
) -> nn.Module:
    """Builds a network and gives it the weights that lie at a path.

    Args:
        path: a file `.safetensors`, or a PyTorch file of a state_dict (`.pt`, `.pth`, `.ckpt`);
            the folder of a run of eslkit or of `eslkit-tsdn demo` (the network that
            Expand-Shrink-Learning ends in), or a folder with a `network.safetensors`.
        model: name of the network, a key of `ARCHITECTURES`, where the file does not say and
            the shapes should not decide.
        step: name of a step of a run, such as "EL"; None for the last.

    Returns:
        The network (an `nn.Module`), on the CPU in float32 and in inference mode.

    Raises:
        InputError: nothing that can be read lies there, it belongs to no known network, or it
            holds values that are not finite.
        StoreError: a run's folder is damaged, or the step is not finished.
    """
    path = Path(path)
    if model is not None and model not in ARCHITECTURES:
        raise InputError(f"model={model!r} is not known; known are {', '.join(ARCHITECTURES)}.")
    if path.is_dir():
        network = _from_folder(path, model=model, step=step)
    elif step is not None:
        raise InputError(f"{path} is no folder of a run, so it has no step {step!r}.")
    else:
        network = from_file(path, model=model)
    for key, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: {key} holds values that are not finite; train again.")
    return network.eval()


def _from_folder(folder: Path, *, model: str | None, step: str | None) -> nn.Module:
    if step is None and (folder / NETWORK_FILE).is_file():
        return from_file(folder / NETWORK_FILE, model=model)
    for run in (RunStore(folder), RunStore(folder / "esl")):
        if run.exists():
            return _from_run(run, model=model, step=step)
    raise InputError(
        f"{folder} holds no network: neither {NETWORK_FILE} nor a run (manifest.json, or "
        "esl/manifest.json of a demo). Pass a file of weights, or a run's folder."
    )


def _from_run(store: RunStore, *, model: str | None, step: str | None) -> nn.Module:
    """The network of a step of a run, the last one unless another is named."""
    names = [each.name for each in store.manifest().steps]
    if step is not None and step not in names:
        raise StoreError(f"{store.folder} has no step {step!r}; its steps are {', '.join(names)}.")
    index = len(names) if step is None else names.index(step) + 1
    finished = store.num_finished()
    if index > finished:
        ready = f"; finished are {', '.join(names[:finished])}" if finished else ""
        raise StoreError(
            f"Step {names[index - 1]} of the run in {store.folder} is not finished{ready}. Start "
            "the run again to finish it, or name a finished step."
        )
    weights = store.weights(index)
    plan = store.plan()
    known = {each.build.__name__: name for name, each in ARCHITECTURES.items()}
    model = model or known.get(plan.model.rpartition(".")[2])
    network = inferred(weights, model=model)
    if network is None:  # an expanded network, which has inserted levels
        network = _walked(store, plan.steps[:index], model=model)
        network.load_state_dict(weights)
    return network


def _walked(store: RunStore, steps: tuple[Step, ...], *, model: str | None) -> nn.Module:
    """The network of the last of these steps, built as the run built it; its weights are new."""
    network = recognised(store.start_weights(), model=model, where=store.folder)
    plan = store.plan()
    inputs = tuple(torch.zeros(shape) for shape in plan.inputs) or None
    for step in steps:
        init = "random" if step.phase == "expand" else "first"  # any policy gives these shapes
        network = apply_step(
            network, step.model_copy(update={"init": init}), plan=plan, example_inputs=inputs
        )
    return network
