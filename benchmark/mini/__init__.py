"""The embedded models: weights, concept cards, subjects drawn by code, and in `recipe/` how they were made.

In: nothing. Out: `WEIGHTS`, the folder of the pipelines, of the judges and of their calibration, and `PIPELINES`.
"""

from pathlib import Path

from benchmark.types import EMBEDDED

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights"
PIPELINES = dict(zip(EMBEDDED, (WEIGHTS / "pipeline", WEIGHTS / "flow"), strict=True))
