"""A run's folder: written atomically, hashed, and resumable.

```
DIR/
├── manifest.json               what is finished, with size and SHA-256 of every file; sealed
├── plan.json                   the plan
├── start.safetensors           the weights of the small model that the run started from
└── steps/02-CSL1/
    ├── weights.safetensors     the trained network of the step
    ├── record.json             metrics, seconds, seed, versions
    └── trainer/                the trainer's own checkpoints; not hashed, never touched
```

A step is finished when the manifest says so, and the manifest is replaced last. Whatever
stops a run before that (SIGKILL, a full disk) leaves the store as it was after the step before.
Nothing in a store is ever deleted; `rewind` moves files to `DIR/aside/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor, nn

from eslkit.errors import PlanError, StoreError
from eslkit.files import FolderLock, check_free_space, sha256_file, storing, write_atomically
from eslkit.manifest import Manifest, StepRecord, StepState, StoredFile
from eslkit.plan import Plan, Step, differences

__all__ = ["RunStore", "tensors_of"]


def tensors_of(model: nn.Module, *, leave_out: bool = False) -> dict[str, Tensor]:
    """A model's state_dict as independent contiguous tensors on the CPU.

    Args:
        model: any module.
        leave_out: whether entries that are no tensors (`get_extra_state`) are left out.

    Raises:
        StoreError: an entry is not a tensor and not to be left out; it cannot be stored without
            pickle.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in cast(dict[str, object], model.state_dict()).items():
        if not isinstance(value, Tensor):
            if leave_out:
                continue
            raise StoreError(
                f"The state_dict entry {key!r} is a {type(value).__name__}; only tensors can be "
                "stored. Keep it out of the state_dict, or make it a buffer."
            )
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
    return tensors


class RunStore:
    """A run's folder. One process writes it at a time; any number may read it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock = FolderLock(self.folder / "lock")

    # Reading

    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self._manifest_path.is_file()

    def is_running(self) -> bool:
        """Whether a process is writing the folder now."""
        return self._lock.is_held()

    def manifest(self) -> Manifest:
        """What the store holds; the manifest alone is checked, not the files.

        Raises:
            StoreError: there is none, or it was cut short or edited.
        """
        path = self._manifest_path
        try:
            text = path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"{self.folder} holds no run: {path.name} is missing. Pass the folder that was "
                "given as out=; if it was copied, copy it whole."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(path.name, f"cannot be read ({error})") from error
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            problem = "was cut short or edited, or is of another version of eslkit"
            raise self._damaged(path.name, problem) from error
        if manifest.seal != manifest.expected_seal():
            raise self._damaged(path.name, "was changed since eslkit wrote it")
        return manifest

    def plan(self) -> Plan:
        """The plan of the run, checked against its hash."""
        stored = self.manifest().start[0]
        try:
            return Plan.from_json(self._read(stored).decode())
        except PlanError as error:
            raise StoreError(f"{self.folder}/plan.json: {error}") from error

    def records(self) -> tuple[StepRecord, ...]:
        """The records of the finished steps, checked against their hashes."""
        finished = [each for each in self.manifest().steps if each.state == "finished"]
        return tuple(StepRecord.model_validate_json(self._read(each.files[1])) for each in finished)

    def num_finished(self) -> int:
        """How many steps are finished; they are the first ones of the plan."""
        return sum(each.state == "finished" for each in self.manifest().steps)

    def start_weights(self) -> dict[str, Tensor]:
        """The weights of the small model that the run started from."""
        return self._tensors(self.manifest().start[1])

    def weights(self, index: int) -> dict[str, Tensor]:
        """The weights of a finished step.

        Args:
            index: place of the step in the plan, counted from 1.

        Raises:
            StoreError: the step is not finished, or its file is damaged.
        """
        entry = self.manifest().steps[index - 1]
        if entry.state != "finished":
            raise StoreError(
                f"Step {entry.name} in {self.folder} is not finished (it is {entry.state}); "
                "start the run again to finish it."
            )
        return self._tensors(entry.files[0])

    def is_finished(self) -> bool:
        """Whether the folder holds a run all steps of which are finished."""
        return self.exists() and self.num_finished() == len(self.manifest().steps)

    def check(self, plan: Plan) -> None:
        """Refuse another plan, and damage.

        Raises:
            StoreError: the store belongs to another plan or another model, or a file is damaged.
        """
        self.check_plan(plan)
        self.verify()

    def verify(self) -> None:
        """Read every file that the manifest answers for.

        Raises:
            StoreError: one is missing, cut short or changed.
        """
        manifest = self.manifest()
        for stored in manifest.start:
            self._check(stored)
        for entry in manifest.steps:
            for stored in entry.files:
                self._check(stored)

    def step_folder(self, step: Step | StepState) -> Path:
        """The folder of a step."""
        return self.folder / "steps" / f"{step.index:02d}-{step.name}"

    def trainer_folder(self, step: Step | StepState) -> Path:
        """The folder for the trainer's own checkpoints of a step."""
        return self.step_folder(step) / "trainer"

    # Writing

    def open_or_create(self, plan: Plan, *, start: dict[str, Tensor]) -> None:
        """Take the folder for writing; a new one is made, one of the same plan is verified.

        Args:
            plan: the plan that is to be run.
            start: the small model's weights, kept in a new store.

        Raises:
            StoreError: another process is writing it, it cannot be written, it is damaged,
                or it belongs to another plan or another model.
        """
        self._lock.acquire()
        try:
            if self.exists():
                self.check(plan)
                self._save(self.manifest())
            else:
                self._create(plan, start)
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def begin(self, step: Step, *, num_bytes: int) -> Path:
        """Mark a step as running.

        Args:
            step: the step.
            num_bytes: size of its weights, for which there must be space.

        Returns:
            The folder for the trainer's own checkpoints.

        Raises:
            StoreError: the disk is too full, or the folder cannot be written.
        """
        check_free_space(self.folder, num_bytes)
        folder = self.trainer_folder(step)
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._mark(StepState(index=step.index, name=step.name, state="running"))
        return folder

    def finish(self, step: Step, *, weights: dict[str, Tensor], record: StepRecord) -> None:
        """Keep the weights and the record of a step, and mark it as finished."""
        folder = self.step_folder(step).relative_to(self.folder)
        files = (
            self._put(folder / "weights.safetensors", safetensors.torch.save(weights)),
            self._put(folder / "record.json", record.model_dump_json(indent=2).encode()),
        )
        self._mark(StepState(index=step.index, name=step.name, state="finished", files=files))

    def stop(self, step: Step, *, state: Literal["interrupted", "failed"], reason: str) -> None:
        """Mark a step as interrupted or failed, unless it had just been finished."""
        if self.manifest().steps[step.index - 1].state == "finished":
            return
        self._mark(StepState(index=step.index, name=step.name, state=state, reason=reason))

    def rewind(self, name: str) -> Path:
        """Forget a step and all that follow it; their files are moved aside, not deleted.

        Args:
            name: the first step that is to be trained again.

        Returns:
            The folder that the files were moved to.

        Raises:
            StoreError: there is no such step, or another process is writing the folder.
        """
        names = [each.name for each in self.manifest().steps]
        if name not in names:
            raise StoreError(f"{self.folder} has no step {name!r}; its steps are {names}.")
        self._lock.acquire()
        try:
            aside = self.folder / "aside" / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
            manifest = self.manifest()
            first = names.index(name)
            cleared = [StepState(index=e.index, name=e.name) for e in manifest.steps[first:]]
            steps = (*manifest.steps[:first], *cleared)
            self._save(manifest.model_copy(update={"steps": steps}))
            with storing(aside):
                aside.mkdir(parents=True)
                for entry in cleared:
                    if self.step_folder(entry).exists():
                        self.step_folder(entry).rename(aside / self.step_folder(entry).name)
        finally:
            self._lock.release()
        return aside

    def check_plan(self, plan: Plan) -> None:
        """Refuse another plan than the one that the store was made by.

        Raises:
            StoreError: the store belongs to another plan or another model.
        """
        there = self.plan()
        way_out = "Choose another folder, or go on with what made this one."
        if (there.model, there.fingerprint) != (plan.model, plan.fingerprint):
            raise StoreError(
                f"{self.folder} was made for another model ({there.model}, parameters of other "
                f"names or shapes than those of this {plan.model}). {way_out}"
            )
        if apart := differences(there, plan):
            more = f"; and {len(apart) - 4} more" if len(apart) > 4 else ""
            raise StoreError(
                f"{self.folder} was made by another plan: {'; '.join(apart[:4])}{more}. {way_out}"
            )

    # The other ranks

    def join(self, plan: Plan, *, patience: float = 60.0) -> None:
        """Wait until rank 0 has opened the folder.

        Args:
            plan: the plan that is to be run.
            patience: seconds to wait while nobody holds the folder.

        Raises:
            StoreError: rank 0 did not come, or the store is of another plan or model.
        """
        self._wait(lambda: self.is_running() and self.exists(), patience, "to be opened")
        self.check_plan(plan)

    def wait_for(self, step: Step, *, patience: float = 60.0) -> None:
        """Wait until rank 0 has written a step.

        Args:
            step: the step.
            patience: seconds to wait while nobody holds the folder.

        Raises:
            StoreError: rank 0 is gone, and the step is not finished.
        """
        awaited = f"to hold step {step.name}"
        self._wait(lambda: self._is_finished(step), patience, awaited)

    def _is_finished(self, step: Step) -> bool:
        return self.manifest().steps[step.index - 1].state == "finished"

    def _wait(self, reached: Callable[[], bool], patience: float, awaited: str) -> None:
        seen = time.monotonic()
        while not reached():
            now = time.monotonic()
            seen = now if self.is_running() else seen
            if now - seen > patience:
                raise StoreError(
                    f"Waited {patience:.0f} s for {self.folder} {awaited}, but rank 0 is not "
                    "running there. All ranks need the same out= on a shared disk; look at what "
                    "rank 0 says and start all of them again."
                )
            time.sleep(0.1)

    # Inner work

    @property
    def _manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    def _create(self, plan: Plan, start: dict[str, Tensor]) -> None:
        if (self.folder / "steps").exists():
            raise self._damaged("manifest.json", "is missing, though there are trained steps")
        files = (
            self._put(Path("plan.json"), plan.to_json().encode()),
            self._put(Path("start.safetensors"), safetensors.torch.save(start)),
        )
        steps = tuple(StepState(index=step.index, name=step.name) for step in plan.steps)
        self._save(Manifest(fingerprint=plan.fingerprint, start=files, steps=steps))

    def _put(self, path: Path, data: bytes) -> StoredFile:
        sha256 = write_atomically(self.folder / path, data)
        return StoredFile(path=path.as_posix(), size=len(data), sha256=sha256)

    def _save(self, manifest: Manifest) -> None:
        text = manifest.sealed().model_dump_json(indent=2) + "\n"
        write_atomically(self._manifest_path, text.encode())

    def _mark(self, entry: StepState) -> None:
        manifest = self.manifest()
        steps = list(manifest.steps)
        steps[entry.index - 1] = entry
        self._save(manifest.model_copy(update={"steps": tuple(steps)}))

    def _check(self, stored: StoredFile) -> Path:
        path = self.folder / stored.path
        if not path.is_file():
            raise self._damaged(stored.path, "is missing; the folder was perhaps copied in part")
        size = path.stat().st_size
        if size < stored.size:
            raise self._damaged(stored.path, f"was cut short: {size} of {stored.size} bytes")
        if size != stored.size or sha256_file(path) != stored.sha256:
            raise self._damaged(stored.path, "was changed since eslkit wrote it")
        return path

    def _read(self, stored: StoredFile) -> bytes:
        return self._check(stored).read_bytes()

    def _tensors(self, stored: StoredFile) -> dict[str, Tensor]:
        data = self._read(stored)
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise self._damaged(stored.path, f"is no safetensors file ({error})") from error

    def _damaged(self, name: str, problem: str) -> StoreError:
        parts = Path(name).parts
        way_out = "Put the original back, or start in another folder"
        if parts[0] == "steps":
            step = parts[1].split("-", 1)[1]
            way_out = (
                "Put the original back, or train again from that step on with "
                f"`eslkit rewind {self.folder} {step}`"
            )
        return StoreError(
            f"{self.folder / name} {problem}. {way_out}; nothing in the folder has been deleted."
        )
