"""What a worker holds: the base, the store, and what a task's parents left there."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmark.config.registry import find
from benchmark.data.safety import gate
from benchmark.diffusion import Model
from benchmark.errors import PluginError, StoreError
from benchmark.guard import guarded
from benchmark.model import load
from benchmark.model.resident import Resident
from benchmark.plan.task import GUIDANCE, Task
from benchmark.runner.isolation.seal import Seal
from benchmark.store import Store
from benchmark.store.artifacts import Gallery, load_delta, load_guard, load_snapshot
from benchmark.types import Precision, Snapshot, Solver

Write = Callable[[Path], None]
Done = tuple[Write, dict[str, Any]]  # what writes a result, and what to note beside it
HELD = 2**31  # bytes of images held in memory


@dataclass
class Bench:
    """What a worker holds: the base, the store, and how many images fit in a batch. Nothing here enters a key: the
    run's `precision`, which says how the base is loaded, is each task's.

    With `save_flagged` the images of an NSFW suite are written to the store; else they are `held` in memory, as long
    as there is room for them, and `private` says what made them. With `keep_attacks` its attacks stay.
    """

    folder: Path
    store: Store
    device: str = "cpu"
    batch: int = 64
    precision: Precision = "float32"
    save_flagged: bool = False
    keep_attacks: bool = False
    private: dict[str, Task] = field(default_factory=dict, repr=False)
    held: dict[str, Gallery] = field(default_factory=dict)

    @cached_property
    def base(self) -> Model:
        """The undefended model, loaded once."""
        return load(self.folder, device=self.device, precision=self.precision)

    @cached_property
    def seal(self) -> Seal:
        """What the base was when it was loaded."""
        self.base.encode_text([""])  # transformers installs hooks of its own when an encoder is first used
        return Seal(self.base)

    def forget(self) -> None:
        """Give the base up, and all that was made of it: the next task loads it anew."""
        for name in ("base", "resident", "seal"):
            vars(self).pop(name, None)

    @cached_property
    def resident(self) -> Resident:
        """The base, and a copy of it on which deltas are swapped."""
        return Resident(self.base)

    def model_for(self, task: Task) -> Model:
        """The base with the parents' changes, until the next call: defended, then attacked up to the task's budget."""
        layers = {key: partial(load_delta, self.store.path(key)) for key in self.lineage(task)}
        snapshots = self.snapshots(task)
        at = f"{task.parents.get('attack')}@{task.fields.get('budget', task.fields.get('start'))}"
        layers |= {f"{at}#{i}": partial(getattr, snapshot, "delta") for i, snapshot in enumerate(snapshots)}
        model = self.gated(self.resident.wear(layers) if layers else self.base, task)
        tokens = {word: vector for snapshot in snapshots for word, vector in snapshot.tokens.items()}
        return self.behind_guard(model.with_tokens(tokens) if tokens else model, task)

    def behind_guard(self, model: Model, task: Task) -> Model:
        """A model behind the guard among a task's defenses, if the task draws with it or searches prompts on it.

        Who trains weights has them in his hands, and trains the model under the guard.
        """
        scale = task.fields.get({"generate": "guidance", "attack": GUIDANCE}.get(task.kind, ""))
        found = [load_guard(self.store.path(key)) for key in self.lineage(task)] if scale is not None else []
        for defense, fields, modules in filter(None, found):
            kind: Any = find("defense", defense).guarding
            guard = TypeAdapter(kind).validate_python(fields).fitted(modules)
            model = guarded(model, guard, float(scale))  # type: ignore[arg-type]
        return model

    def gated(self, model: Model, task: Task) -> Model:
        """A model as a task may use it: at its precision, with its solver, and behind the age filter's gate."""
        solver: Solver = task.fields.get("scheduler", "ddim") if task.kind == "generate" else "ddim"
        gated = partial(gate, is_sexual=task.is_sexual)
        return replace(model, precision=task.precision, solver=solver, gate=gated)

    def lineage(self, task: Task) -> list[str]:
        """Keys of the defenses under a task, the first trained first: a composed one was trained on another."""
        keys, key = list[str](), task.parents.get("defense")
        while key:
            keys.insert(0, key)
            key = self.store.meta(key)["identity_of"]["parents"].get("defense")
        return keys

    def snapshots(self, task: Task) -> list[Snapshot]:
        """What the attacks under a task had when it begins, the first attack first.

        An image task reads its attack's at its budget; a prompt attack that follows a weight attack reads that one's
        at its start.

        Raises:
            PluginError: an attack stopped before.
            StoreError: it was deleted, as an NSFW suite's are once its images are scored.
        """
        found = list[Snapshot]()
        key, steps = task.parents.get("attack"), task.fields.get("budget", task.fields.get("start"))
        while key:
            meta, folder = self.store.meta(key), self.store.path(key) / snapshot_name(steps)
            if not folder.is_dir():
                if meta.get("withheld") and str(steps) in meta["budgets"]:
                    raise StoreError(
                        f"expected the snapshot at {steps} steps of {key}, got one that was deleted once its images "
                        "were scored: give --keep-attacks to the run that computes it."
                    )
                why = meta.get("stopped", "it has no such snapshot")
                raise PluginError(f"expected a snapshot at {steps} steps, got an attack that stopped before: {why}")
            found.insert(0, load_snapshot(folder))
            key, steps = meta["identity_of"]["parents"].get("attack"), meta["identity_of"]["fields"].get("start")
        return found

    def hold(self, key: str, gallery: Gallery) -> None:
        """Keep images in memory; those that were asked for longest ago go when there are too many."""
        self.held[key] = gallery
        while len(self.held) > 1 and sum(g.images.nbytes for g in self.held.values()) > HELD:
            del self.held[next(iter(self.held))]


def snapshot_name(steps: int) -> str:
    """The folder of a snapshot inside an attack's result."""
    return f"step-{steps:06d}"
