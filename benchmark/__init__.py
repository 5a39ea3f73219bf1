"""The matrix runner. For scripts and notebooks: `benchmark.run`. Importing this loads no torch.

    import benchmark

    board = benchmark.run("smoke", defenses=[Mine(strength=0.5)])

An own class needs no package. Its results are stored under a key with a hash of its code, so that an edited class is
never mistaken for what it was.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from benchmark.config.registry import PluginKind

__all__ = ["run"]

Methods = Sequence[Any] | Mapping[str, Any]


def run(
    config: str | Path | Mapping[str, Any],
    *,
    defenses: Methods = (),
    attacks: Methods = (),
    metrics: Methods = (),
    out: str | Path | None = None,
    store: str | Path = "store",
    device: str = "auto",
    batch: int = 64,
    executor: str = "local",
    workers: int | None = None,
) -> "pd.DataFrame":
    """Run a matrix as `titer run` does, with own methods besides those that the config names.

    Args:
        config: a preset's name, a YAML file, or the values of such a file.
        defenses: instances; on the board each has the name of its class, its attribute `label` or its key in a mapping.
        attacks: the same.
        metrics: the same.
        out: folder of the tables; by default runs/<name>.
        store: folder of all results.
        device: cpu, cuda or auto.
        batch: images at once; changes no number.
        executor: local, this process; ray, workers on a machine or a cluster.
        workers: how many on Ray; by default one a core, or two a GPU.

    Returns:
        The leaderboard, a row for each defense. Tasks that failed are named in a warning, and are tried again by the
        next call; their tracebacks are in `failures.json`.

    Raises:
        InputError: a name, a value, a method or a folder is wrong.
    """
    from rich.console import Console

    from benchmark import session
    from benchmark.config import config as configs
    from benchmark.config import own_classes
    from benchmark.errors import ConfigError, unknown
    from benchmark.model.devices import check_name, present
    from benchmark.runner.executors import Executor
    from benchmark.runner.progress import Bars

    values = dict(config) if isinstance(config, Mapping) else configs.read(str(config))
    given: dict[PluginKind, Methods] = {"defense": defenses, "attack": attacks, "metric": metrics}
    for kind, methods in given.items():
        if methods and isinstance(values, dict):
            listed = values.get(f"{kind}s", ())
            if not isinstance(listed, list | tuple):
                raise ConfigError(f"expected a list of {kind}s in the config, got {listed!r}: change it.")
            values = values | {f"{kind}s": [*listed, *own_classes.items(kind, methods)]}
    if executor not in list(Executor):
        raise ConfigError(unknown("executor", executor, Executor))
    checked = configs.parse(values)
    check_name(device, on_ray=executor == Executor.ray)
    if executor == Executor.local:
        present(device)
    source = "benchmark.run" if isinstance(config, Mapping) else str(config)
    job = session.prepare(checked, source=source, out=Path(out) if out else None, store=Path(store))
    with Bars(Console(stderr=True, highlight=False), job.left) as bars:
        outcome = job.run(bars, device=device, batch=batch, executor=Executor(executor), workers=workers)
    for key, trace in outcome.failed.items():
        reason = trace.strip().rpartition("\n")[2]
        warnings.warn(f"failed: {job.plan.tasks[key].label}: {reason} ({job.out / 'failures.json'})", stacklevel=2)
    assert job.leaderboard is not None
    return job.leaderboard
