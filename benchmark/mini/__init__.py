"""The embedded model: weights, concept cards, and in `recipe/` how they were made."""

from pathlib import Path

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights"
