"""The embedded model: weights, concept cards, subjects drawn by code, and in `recipe/` how they were made.

In: nothing. Out: `WEIGHTS`, the folder of the pipeline, of the judges and of their calibration.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights"
