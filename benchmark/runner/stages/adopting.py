"""defend, without training: a change that `titer import` wrote becomes the result of its task."""

from pathlib import Path

from benchmark.config.imported import NOTE, digest
from benchmark.errors import DataError
from benchmark.plan.task import Task
from benchmark.runner.flags import flags_of
from benchmark.runner.stages.bench import Bench, Done
from benchmark.store.artifacts import ADAPTER, DENSE, load_delta, save_delta
from benchmark.store.files import sha256
from benchmark.types import Report, Snapshot


def adopt(task: Task, bench: Bench, report: Report) -> Done:
    """Take an imported change over, if its files are those that the plan has read of. It has no cost to tell.

    Raises:
        DataError: they are not.
    """
    folder = Path(task.places["folder"])
    files = [folder / name for name in (DENSE, ADAPTER) if (folder / name).is_file()]
    if digest({file.name: sha256(file) for file in files}) != task.fields["sha256"]:
        raise DataError(f"expected the files in {folder} that its {NOTE} names, got others: import it again.")
    delta = load_delta(folder)
    bench.model_for(task).with_delta(delta)  # raises on a wrong name or shape
    report(step=1, total=1, loss=float("nan"))
    return lambda to: save_delta(to, delta), {
        "cost": {},
        "flags": flags_of(Snapshot(steps=0, delta=delta), []),
        "fidelity": "weights-only",
    }
