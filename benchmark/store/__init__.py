"""Results by key: whole or not there.

In: what a stage wrote, under the key of its task. Out: the same files, to whoever knows the key. It imports the plan's
words; the rooms that compute, and the tables, import it.
"""

from benchmark.store.store import Store

__all__ = ["Store"]
