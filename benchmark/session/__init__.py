"""One run, from its config to its folder of tables: what `titer run` and `benchmark.run` call.

In: a config, a store, an output folder. Out: results in the store, tables in the folder. Imported by the commands and
by `benchmark.run` alone.
"""

from benchmark.session.prepare import planned, prepare
from benchmark.session.session import Session, merge

__all__ = ["Session", "merge", "planned", "prepare"]
