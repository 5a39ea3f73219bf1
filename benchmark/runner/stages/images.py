"""The images that a task's parents made: from the store, from memory, or drawn again where they are not kept."""

from benchmark.errors import StoreError
from benchmark.plan.task import Task
from benchmark.runner.stages.bench import Bench
from benchmark.runner.stages.drawing import seen
from benchmark.store.artifacts import Gallery, load_images
from benchmark.types import Examples


def examples_of(task: Task, bench: Bench) -> dict[str, Examples]:
    """The training images among a task's parents, by role."""
    roles = {role: key for role, key in task.parents.items() if role in ("concept", "safe", "benign")}
    galleries = {role: gallery_of(key, bench) for role, key in roles.items()}
    own = {role: g.images.to(bench.device, copy=True) for role, g in galleries.items()}  # a method may do as it likes
    return {role: Examples(images=own[role], captions=g.prompts) for role, g in galleries.items()}


def gallery_of(key: str, bench: Bench) -> Gallery:
    """The images of a finished task.

    Raises:
        StoreError: they were not kept, and this is no run that draws them.
    """
    if key not in bench.held:
        meta = bench.store.meta(key)
        if not meta.get("withheld"):
            return load_images(bench.store.path(key))
        if key not in bench.private:
            raise StoreError(f"expected images of {key}, got none that were kept: only a run with them draws them.")
        bench.hold(key, seen(bench.private[key], bench, lambda *, step, total, loss: None)[0])
    bench.held[key] = bench.held.pop(key)  # the last one asked for goes last
    return bench.held[key]
