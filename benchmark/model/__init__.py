"""A base -> Model -> images.

In: the name, folder or hub id of a base, and deltas. Out: a `Model`, and galleries that the one sampler drew from it.
It stands beside the flow: the stages import it, and it knows no task.
"""

from benchmark.model.bases import find, load

__all__ = ["find", "load"]
