"""What a method requires of a family of models, it says: a family that lacks it is refused with the plan."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, get_args
from unittest.mock import patch

from benchmark.diffusion import Model
from benchmark.kit.conformance.expect import expect
from benchmark.types import Concept, Requirement

USES = {"encode_words": "words", "pndm": "schedule"}


@contextmanager
def says_what_it_uses(method: Any, model: Model, concept: Concept) -> Iterator[None]:
    """Refuse a method that uses what it does not require, or requires what nobody knows."""
    asked, known = method.requires(concept), get_args(Requirement)
    strange = sorted(set(asked) - set(known))
    expect(not strange, f"`requires` to name some of {', '.join(known)}", strange)
    cls, used = type(model), set[str]()
    with ExitStack() as stack:
        for name, requirement in USES.items():
            stack.enter_context(patch.object(cls, name, noting(getattr(cls, name), used, requirement)))
        stack.enter_context(patch.object(cls, "scope", noting(cls.scope, used, None)))
        yield
    missing = sorted(used & set(known) - set(asked))
    expect(not missing, f"`requires` to name {', '.join(missing)}, which it uses", asked)


def noting(call: Callable[..., Any], used: set[str], what: str | None) -> Callable[..., Any]:
    """A method of the model that notes what it stands for; None: its first argument."""

    def noted(model: Model, *words: Any, **more: Any) -> Any:
        used.add(what if what is not None else str(words[0]))
        return call(model, *words, **more)

    return noted
