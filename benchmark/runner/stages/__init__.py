"""defend, attack, generate, embed, score: the only places that call a plug-in.

Each runs one task and returns what to write and what to note beside it. Randomness comes from the task's seed.
"""

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from benchmark.config.imported import USE
from benchmark.plan.task import Task
from benchmark.runner.stages.account import generator
from benchmark.runner.stages.adopting import adopt
from benchmark.runner.stages.bench import Bench, Done, snapshot_name
from benchmark.runner.stages.drawing import draw
from benchmark.runner.stages.scoring import check, embed, score
from benchmark.runner.stages.training import attack, defend
from benchmark.types import Report

__all__ = ["Bench", "Done", "check", "generator", "needs_base", "run", "snapshot_name"]

for library in (diffusers_logging, transformers_logging):
    library.disable_progress_bar()  # their bars of a second would run through the run's own


def needs_base(task: Task) -> bool:
    """Whether a task's stage reads the base: to change it, to draw with it, or to know its size."""
    return task.kind in ("defend", "attack") or (task.kind == "generate" and task.plugin != "subject")


def run(task: Task, bench: Bench, report: Report) -> Done:
    """Run a task with the stage of its kind."""
    stage = {"defend": defend, "attack": attack, "generate": draw, "embed": embed, "score": score}[task.kind]
    if task.kind == "defend" and task.plugin == USE:
        stage = adopt
    if task.kind not in ("defend", "attack") and "begin" not in task.fields:
        return stage(task, bench, report)
    bench.resident.drop()  # a method gets a copy of its own, and its peak of memory is its own, too
    try:
        return stage(task, bench, report)
    finally:
        bench.resident.drop()
