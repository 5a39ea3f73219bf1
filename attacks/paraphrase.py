"""paraphrase: the concept in other words, from its card. No search, no model.

    prompt with the phrase  ->  the same prompt with one of the card's paraphrases in its place

Which one depends on the prompt's hash alone, so it is the same on every defense and in every run.

Paper     none; published paraphrase sets: MACE's synonyms (three an object), EMMA's implicit prompts.
Code      Shilin-LU/MACE, 10_objects_paraphrase.json, for the idea of a list beside the concept
Differs   the paraphrases are the card's.
Access    queries: an attacker who can only ask.
Budget    one try. The one budget is 1, whatever the grid says.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from attacks.base import Attack
from benchmark.types import Concept


@dataclass(frozen=True, kw_only=True)
class Paraphrase(Attack):
    """Ask for the concept by a synonym or a description."""

    version = 1
    changes = "prompts"
    access = "queries"
    unit = "try"

    def budgets(self, asked: Sequence[int]) -> tuple[int, ...]:
        """One try."""
        return (1,)

    def objection(self, concept: Concept) -> str:
        """It needs paraphrases, and prompts that have the phrase."""
        if not concept.paraphrases:
            return f"the card {concept.name!r} has no paraphrases"
        lacking = [p.text for p in concept.of("concept") if not pattern(concept.phrase).search(p.text)]
        return f"the card {concept.name!r} has prompts without its phrase, such as {lacking[0]!r}" if lacking else ""

    def reword(self, text: str, concept: Concept) -> str:
        """The prompt with a paraphrase in place of the phrase.

        Raises:
            ValueError: the card has no paraphrases, or the prompt lacks the phrase.
        """
        if not concept.paraphrases:
            raise ValueError(f"expected paraphrases in the card {concept.name!r}, got none: add `paraphrases:`.")
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % len(concept.paraphrases)
        other, found = pattern(concept.phrase).subn(lambda _: concept.paraphrases[number], text)
        if not found:
            raise ValueError(
                f"expected the phrase {concept.phrase!r} of the card {concept.name!r} in its prompts, got {text!r}: "
                "write the phrase into the prompt, or change `phrase:`."
            )
        return other


def pattern(phrase: str) -> re.Pattern[str]:
    """The phrase as whole words, in any case."""
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)
