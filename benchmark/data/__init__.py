"""What is drawn and judged: concept cards, tables of prompts, pictures from the user's folders, the safety gate.

In: YAML cards, prompt files, folders of images. Out: `Concept`, `Prompt`, `Picture`. All rooms below may import it.
"""

from benchmark.data.cards import load_concept

__all__ = ["load_concept"]
