"""What a method requires of a family of models, and which prompts it reads, it says.

A family that lacks the first is refused with the plan; the second is part of the key under which a result is kept.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, get_args
from unittest.mock import patch

from attacks.base import Attack
from benchmark.diffusion import Model
from benchmark.kit.conformance.expect import expect
from benchmark.types import Concept, Requirement

USES = {"encode_words": "words", "pndm": "schedule", "attending": "apart"}


@contextmanager
def says_what_it_uses(method: Any, model: Model, concept: Concept) -> Iterator[None]:
    """Refuse a method that uses what it does not require, or requires what nobody knows."""
    asked, known = method.requires(concept), get_args(Requirement)
    strange = sorted(set(asked) - set(known))
    expect(not strange, f"`requires` to name some of {', '.join(known)}", strange)
    cls, used, read = type(model), set[str](), set[str]()
    may = set(getattr(method, "reads", ()))
    with ExitStack() as stack:
        for name, requirement in USES.items():
            stack.enter_context(patch.object(cls, name, noting(getattr(cls, name), used, requirement)))
        stack.enter_context(patch.object(cls, "scope", noting(cls.scope, used, None)))
        stack.enter_context(patch.object(Concept, "of", noting(Concept.of, read, None)))
        yield
    missing = sorted(used & set(known) - set(asked))
    expect(not missing, f"`requires` to name {', '.join(missing)}, which it uses", asked)
    theirs = sorted(read - may)
    known_by = f"`reads` to name: {', '.join(sorted(may)) or 'none'}"
    expect(not theirs, known_by, f"one that reads those of {', '.join(theirs)}")
    listed = sorted(may - {"attacker", "concept"}) if isinstance(method, Attack) else []
    expect(not listed, "an attack to read prompts of the splits attacker and concept alone", listed)


def noting(call: Callable[..., Any], used: set[str], what: str | None) -> Callable[..., Any]:
    """A method of a model or a card that notes what it stands for; None: its first argument."""

    def noted(whose: Any, *words: Any, **more: Any) -> Any:
        used.add(what if what is not None else str(next(iter([*words, *more.values()]))))
        return call(whose, *words, **more)

    return noted
