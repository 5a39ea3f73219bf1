"""Who runs the tasks: this process, or many."""

from enum import StrEnum


class Executor(StrEnum):
    """Who runs the tasks: this process, or workers on Ray."""

    local = "local"
    ray = "ray"
