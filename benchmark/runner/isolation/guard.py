"""One call into code that is not the runner's, between two looks at what it must leave alone."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from benchmark.errors import PluginError
from benchmark.plan.seeds import task_seed
from benchmark.plan.task import Task
from benchmark.runner.isolation import interrupts, surroundings
from benchmark.runner.isolation.patches import Names
from benchmark.runner.isolation.seal import Seal
from benchmark.runner.limits import TimeLimitError

Made = TypeVar("Made")
SHOWN = 5  # changes that a message names


class TamperedError(PluginError):
    """A plug-in changed what is not its own."""


def guarded(task: Task, seal: Seal | None, stage: Callable[[], Made]) -> Made:
    """What a task's stage gives, if it left everything else as it was.

    The process is put back as it was, whatever happens; a base that was changed is the caller's to load anew.

    Args:
        task: whose plug-in the stage calls; its seed is that of the global generators meanwhile.
        seal: of the base; None for a stage that has none at hand.
        stage: what to call.

    Raises:
        TamperedError: the base, the process or a function was changed.
        PluginError: the plug-in tried to end the process.
        Exception: whatever the stage raised itself; TimeLimitError, too.
        KeyboardInterrupt: somebody pressed Ctrl-C.
    """
    process, before, aside = os.getpid(), surroundings.read(), surroundings.Aside()
    names = Names(seal.model if seal else None)
    surroundings.seed(task_seed("global", task.plugin, task.label, task.seed))
    failure: BaseException | None = None
    try:
        made = stage()
    except BaseException as error:  # also what a plug-in raises to end the process
        failure = error
    if os.getpid() != process:  # the plug-in forked, and this is the copy
        os._exit(0)
    aside.restore()
    changed = names.restore() + surroundings.restore(before)
    try:
        if isinstance(failure, KeyboardInterrupt) and interrupts.real():
            raise failure
        changed += opened(seal) if seal else []
        if changed:
            raise TamperedError(complaint(task, changed)) from failure
        if isinstance(failure, Exception | TimeLimitError):
            raise failure
        if failure is not None:
            raise PluginError(
                f"expected {task.plugin} to return or to raise an Exception, got {type(failure).__name__}: "
                "a method may not end the run."
            ) from failure
        return made
    finally:
        failure = None  # its traceback holds this frame, and with it tensors


def opened(seal: Seal) -> list[str]:
    """What was changed in the base."""
    try:
        return seal.broken()
    except Exception as error:  # of a part that no longer works
        return [f"a base that answers with {error!r}"]


def complaint(task: Task, changed: Sequence[str]) -> str:
    """What a plug-in changed, in one line."""
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return (
        f"expected {task.plugin} to leave everything but its result as it was, got changes of "
        f"{', '.join(changed[:SHOWN])}{more}: work on `model.clone()`, and put back what you set."
    )
