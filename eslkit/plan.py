"""A plan: every step of an Expand-Shrink-Learning run, written down before it is run.

A plan is a frozen value. It is read from and written to JSON or YAML, carries a version
number, and names the model that it was made for by a fingerprint of its state_dict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from eslkit.errors import PlanError

__all__ = [
    "PLAN_VERSION",
    "LayerInfo",
    "Plan",
    "Source",
    "Step",
    "check_same_form",
    "class_path",
    "differences",
    "fingerprint",
]

PLAN_VERSION = 1
"""The version of the plan's form that this release reads and writes."""


def _positive(width: float | dict[str, float]) -> float | dict[str, float]:
    numbers = width.values() if isinstance(width, dict) else (width,)
    if not all(number > 0 for number in numbers):
        raise ValueError("width multipliers must be greater than 0")
    return width


Width = Annotated[float | dict[str, float], AfterValidator(_positive)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LayerInfo(_Frozen):
    """One layer of a network as it is drawn."""

    name: str
    """Qualified name of the layer, in the words of the network it is drawn in."""
    kind: Literal["conv", "up", "down", "other"]
    """What it does to the resolution: nothing, raise it, lower it; or another layer."""
    level: int = Field(ge=0)
    """Resolution level of its output: 0 is full resolution, each further one is coarser."""
    width: int = Field(ge=0)
    """Channels of its output."""
    stage: str = ""
    """The sub-network that it belongs to, empty when there is only one."""
    skip: str | None = None
    """Name of the layer whose output joins its input by a skip; empty: none, None: not known."""


class Step(_Frozen):
    """One network of the schedule, and its training."""

    index: int = Field(ge=1)
    """Place in the plan, counted from 1."""
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.+-]+$")
    """Short name: EL, CSL1, CSL2, ..., LSL1, ... as in the paper."""
    phase: Literal["expand", "channels", "layers", "both"]
    """Expand-learning, channel-shrink-learning, layer-shrink-learning, or both kinds of shrinking
    in one step."""
    width: float | None = Field(default=None, gt=0)
    """Width multiplier that the expansion uses; None in the shrinking steps, and where each group
    has one of its own."""
    depth: int = Field(default=0, ge=0)
    """Levels that the expansion inserts; 0 in the shrinking steps."""
    widths: dict[str, int] = {}
    """Channel group -> width after this step; only the groups that the step changes."""
    removed: tuple[str, ...] = ()
    """Layers that the step takes out, named as in the network that has them."""
    taken_out: tuple[str, ...] = ()
    """Layers of the user's own large model among them, by their names in the network before."""
    flatten: int = Field(default=0, ge=0)
    """Which part of taking the inserted level out this is, from 1; 0 for none."""
    layers: int = Field(default=0, ge=0)
    """Convolution and linear layers that the step changes or removes."""
    init: str
    """Name of the init policy that carries the weights into this network."""
    parameters: int = Field(ge=0)
    """Parameters of the network of this step."""
    macs: int = Field(ge=0)
    """Multiply-accumulates of one forward pass on the plan's inputs; FLOPs are twice that."""
    peak_activation_bytes: int | None = Field(default=None, ge=0)
    """Most bytes of activations alive at once in a forward pass without gradients."""
    training_bytes: int | None = Field(default=None, ge=0)
    """Estimate of what its training takes: weights, gradients, Adam's moments, and the activations
    that autograd keeps, on the plan's inputs; None where it is not known."""
    iterations: int | None = Field(default=None, ge=1)
    """Optimizer updates planned for its training; None leaves them to the trainer."""
    seed: int = Field(default=0, ge=0)
    """Seed of the surgery and of the training of this step."""
    picture: tuple[LayerInfo, ...] = ()
    """The layers of the network after this step, in order of execution, for drawing."""

    @property
    def flops(self) -> int:
        """FLOPs of one forward pass on the plan's inputs."""
        return 2 * self.macs

    @property
    def training_flops(self) -> int | None:
        """FLOPs of its whole training, without a teacher's; a backward pass is two forward ones."""
        return None if self.iterations is None else 3 * self.flops * self.iterations


class Source(_Frozen):
    """The large model that a walk begins from."""

    model: str
    """Class path of the model, as `package.module.Class`."""
    fingerprint: str
    """SHA-256 over the keys, shapes and dtypes of its state_dict."""
    parameters: int = Field(ge=0)
    """Its parameters."""
    macs: int = Field(ge=0)
    """Multiply-accumulates of one forward pass on the plan's inputs."""
    peak_activation_bytes: int | None = Field(default=None, ge=0)
    """As in a step."""
    training_bytes: int | None = Field(default=None, ge=0)
    """As in a step."""
    picture: tuple[LayerInfo, ...] = ()
    """Its layers, in order of execution, for drawing."""


class Plan(_Frozen):
    """What is meant: the steps from a small model up and back down to itself."""

    version: int = PLAN_VERSION
    """Version of this form."""
    model: str
    """Class path of the model, as `package.module.Class`."""
    source: Source | None = None
    """The large model that the walk begins from; None where it begins from the small one, which
    the first step expands."""
    width: Width
    """Width multiplier of the expansion, one for all or by pattern."""
    depth: int = Field(ge=0)
    """Levels that the expansion inserts."""
    at: tuple[str, ...] = ()
    """Modules at which it inserts them; empty for the bottlenecks that it finds."""
    init: str
    """Init policy of the shrinking steps."""
    granularity: str | int
    """`fine`, `one-shot`, `direct`, the number of layers changed in a step, `own` for steps that
    the user listed, or the paper's name of the whole recipe."""
    expand_init: str
    """Init policy of the expansion."""
    rates: Literal["restart", "once"] | Annotated[float, Field(gt=0, le=1)] = "restart"
    """How the learning rate runs over the steps: anew in each; anew, but after the first step only
    to this part of its height; or once over all of them."""
    scale_rates: bool = False
    """Whether a network n times as wide as the small one learns at an n-th of its rate."""
    teach: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """How much the network of the step before teaches that of a step; 0 for not at all."""
    linear: int = Field(default=0, ge=0)
    """How many times as many channels lie inside of each layer while it is trained; 0 for none."""
    protect: tuple[str, ...] = ()
    """Names that the user asked to leave as they are."""
    inputs: tuple[tuple[int, ...], ...] = ()
    """Shapes of the example inputs that costs are counted on."""
    fingerprint: str
    """SHA-256 over the keys, shapes and dtypes of the small model's state_dict."""
    ending: str = ""
    """The same of the network that the last step leaves, where that is not the small model's."""
    base_parameters: int = Field(ge=0)
    """Parameters of the small model."""
    base_macs: int = Field(ge=0)
    """Multiply-accumulates of the small model on the plan's inputs."""
    base_peak_activation_bytes: int | None = Field(default=None, ge=0)
    """As in a step, of the small model."""
    base_training_bytes: int | None = Field(default=None, ge=0)
    """As in a step, of the small model."""
    picture: tuple[LayerInfo, ...] = ()
    """The layers of the small model; empty where the last step leaves the same."""
    steps: tuple[Step, ...]
    """The steps, in order."""

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if not self.steps:
            raise ValueError("a plan needs at least one step, and `steps` is empty")
        indices = [step.index for step in self.steps]
        if indices != list(range(1, len(indices) + 1)):
            raise ValueError(f"steps must be numbered 1 to {len(indices)} in order, got {indices}")
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise ValueError(f"step names must differ from each other, got {names}")
        return self

    def cost(self, step: Step) -> float:
        """Training cost of a step relative to training the small model for one step.

        Where every step has a number of iterations they are counted (relative to the
        last step's), otherwise all steps are taken to be equally long.
        """
        longest = [each.iterations for each in self.steps]
        base, last = self.base_macs, longest[-1]
        ratio = self.update_macs(step) / base if base else 0.0
        if None in longest or step.iterations is None or last is None:
            return ratio
        return ratio * step.iterations / last

    def update_macs(self, step: Step) -> float:
        """A third of the multiply-accumulates of one update, on the plan's inputs.

        That is the network's forward pass, since the backward pass is taken for two more; and a
        third of the teacher's, which is only asked.
        """
        if not self.teach:
            return step.macs
        before = self.source if step.index == 1 else self.steps[step.index - 2]
        return step.macs + (0 if before is None else before.macs / 3)

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` reads it back to an equal plan."""
        return self.model_dump_json(indent=2) + "\n"

    def to_yaml(self) -> str:
        """The plan as YAML text; `from_yaml` reads it back to an equal plan."""
        data = self.model_dump(mode="json")
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """A plan from JSON text.

        Raises:
            PlanError: the text is not JSON, has another version, or is malformed.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(
                f"The plan is not JSON: {error}. Write it with plan.to_json()."
            ) from error
        return _checked(data)

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """A plan from YAML text.

        Raises:
            PlanError: the text is not YAML, has another version, or is malformed.
        """
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            place = " ".join(str(error).split())
            raise PlanError(
                f"The plan is not YAML: {place}. Write it with plan.to_yaml()."
            ) from error
        return _checked(data)


def _checked(data: Any) -> Plan:
    """A plan from decoded text, or a PlanError that names every field that is wrong."""
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds a {type(data).__name__}"
        raise PlanError(f"A plan is a mapping of fields to values, but the text {found}.")
    version = cast(dict[str, Any], data).get("version")
    if version != PLAN_VERSION:
        raise PlanError(
            f"The plan has version {version!r}, this eslkit reads version {PLAN_VERSION}. "
            "Make the plan again with eslkit.schedule(...), or install the eslkit that wrote it."
        )
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'plan'}: {item['msg']}" for item in error.errors()
        )
        raise PlanError(f"The plan is malformed at {wrong}.") from error


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the sorted lines `key shape dtype` of a model's state_dict.

    Two models have the same fingerprint when one's weights load strictly into the other.

    Args:
        model: any module; only the form of its state_dict counts, not the values.

    Returns:
        64 hexadecimal digits.
    """
    lines: list[str] = []
    for key, value in cast(dict[str, object], model.state_dict()).items():
        if isinstance(value, Tensor):
            lines.append(f"{key} {tuple(value.shape)} {value.dtype}")
        else:
            lines.append(f"{key} {type(value).__name__}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def class_path(model: nn.Module) -> str:
    """`package.module.Class` of a model."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def check_same_form(network: nn.Module, other: nn.Module, *, shapes: bool = False) -> None:
    """Raise unless the state_dicts have the same keys, and with `shapes` the same shapes.

    Args:
        network: the large model, or what became of it.
        other: the small model.
        shapes: whether the shapes must be the same, too.

    Raises:
        PlanError: they differ; the message names the first difference.
    """
    here, there = network.state_dict(), other.state_dict()
    odd = sorted(here.keys() ^ there.keys())
    if odd:
        side = "large" if odd[0] in here else "small"
        raise PlanError(
            f"The large and the small model are not of one form: {odd[0]} is only in the {side} "
            "one. Widths may differ, and levels that eslkit inserted; layers must be the same."
        )
    for key in here if shapes else ():
        # what a model adds to its state has no shape
        have, want = (tuple(getattr(state[key], "shape", ())) for state in (here, there))
        if have != want:
            raise PlanError(
                f"The steps end with {key} of shape {have}, the small model has {want}: a "
                "group that cannot be resized differs. print(eslkit.trace(large)) tells why it "
                "is protected."
            )


def differences(there: Plan, here: Plan) -> list[str]:
    """What two plans mean differently, one phrase each; not what is only told about the networks.

    Args:
        there: the plan that something was made by.
        here: the plan that is to be gone on with.
    """
    told = {"picture", "macs", "peak_activation_bytes", "training_bytes"}
    base = {f"base_{name}": True for name in told}
    ignored: Any = {"steps": {"__all__": told}, "source": told, "picture": True, **base}
    old, new = (each.model_dump(mode="json", exclude=ignored) for each in (there, here))
    return _differences(old, new)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Field by field; steps of the same names by what they do."""
    found: list[str] = []
    for key in here:
        first, second = there[key], here[key]
        if first == second:
            continue
        if key == "steps" and _names(first) == _names(second):
            for old, new in zip(first, second, strict=True):
                found += [
                    f"step {new['name']}: {name} is {old[name]!r} there and {new[name]!r} here"
                    for name in _apart(old, new)
                ]
        elif key == "steps":
            found.append(f"steps are {_names(first)} there and {_names(second)} here")
        else:
            found.append(f"{key} is {first!r} there and {second!r} here")
    return found


def _names(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    return [step["name"] for step in steps]


def _apart(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Fields that differ: what a step does before what that makes of the network."""
    fields = sorted(new, key=lambda name: name == "parameters")
    return [name for name in fields if old[name] != new[name]]
