"""What a plan refuses of a suite of a sexual concept before anything is computed: see `benchmark.data.safety`."""

from collections.abc import Collection, Iterator
from itertools import product
from typing import Any

from benchmark.config.config import members
from benchmark.config.entries import Entry, adapter
from benchmark.data.cards import cards
from benchmark.data.safety import is_of_sex, is_refused
from benchmark.errors import ConfigError
from benchmark.plan.matrix import Plan
from benchmark.types import Concept

REMEDY = "change the card's words or the method's"


def check(plan: Plan, keys: Collection[str]) -> None:
    """Refuse texts that the age filter does not permit, as they will be drawn and as captions will say them.

    Args:
        plan: with all its tasks.
        keys: of the tasks that belong to a suite of a sexual concept.

    Raises:
        ConfigError: there is such a text, or a judge of sexual concepts looks at another kind of card.
    """
    check_judges(plan)
    if not keys:
        return
    taught = (plan.config.adaptation.attack,) if plan.config.adaptation else ()
    for given in (*plan.config.defenses, *plan.config.attacks, *taught):
        for who in chain_of(given):
            for name, text in words_of(who):
                refuse(text, f"in the field {name!r} of {who.label!r}")
    drawn = {id(plan.tasks[key].prompts): key for key in keys if plan.tasks[key].kind == "generate"}
    for key in drawn.values():
        for prompt in plan.tasks[key].prompts:
            refuse(prompt.text, f"in {plan.tasks[key].label}")
    concepts = {cell.concept.name: cell.concept for cell in plan.cells if cell.concept.kind == "nsfw"}
    for concept, attack in product(concepts.values(), plan.config.attacks):
        check_captions(concept, attack)


def check_judges(plan: Plan) -> None:
    """Refuse a judge of sexual concepts in front of a card of another kind.

    As a metric beside the judge, NudeNet may look at titer's own cards, which are harmless: its false positives.
    """
    names = [str(getattr(m.method, "model", "")) for m in plan.config.metrics]
    if not {name for item in plan.config.raw.concepts for name in members(item)} <= set(cards()):
        names += [m.use for m in plan.config.metrics]
    judges = list(filter(is_of_sex, names))
    other = [cell.concept.name for cell in plan.cells if cell.concept.kind != "nsfw"]
    if judges and other:
        raise ConfigError(
            f"expected cards of the kind nsfw with the judge {judges[0]!r}, got {other[0]!r}: "
            "write `kind: nsfw` into the card, or leave the judge out."
        )


def check_captions(concept: Concept, attack: Entry) -> None:
    """Refuse captions of training images as an attack words them."""
    captions = [prompt.text for prompt in concept.of("attacker")]
    captions += [picture.caption for picture in concept.pictured("attacker")]
    for who in chain_of(attack):
        if who.method.changes != "weights" or who.method.objection(concept):
            continue
        for caption in dict.fromkeys(captions):
            refuse(who.method.reword(caption, concept), f"in a caption of {who.label!r} for {concept.name!r}")


def chain_of(who: Entry) -> Iterator[Entry]:
    """A method, what it builds on, and the trials of a tuned one."""
    yield from who.trials or (who,)
    if who.after:
        yield from chain_of(who.after)


def words_of(who: Entry) -> Iterator[tuple[str, str]]:
    """Every text among the fields of a method that a user may choose: name and text. A fixed set of names is none."""
    known = adapter(type(who.method)).json_schema().get("properties", {})
    for name, value in who.fields.items():
        if is_open(known.get(name, {})):
            texts = value if isinstance(value, list) else [value]
            yield from ((name, text) for text in texts if isinstance(text, str))


def is_open(schema: dict[str, Any]) -> bool:
    """True unless a field's JSON Schema lists the values that it may have."""
    return any(map(is_open, schema.get("anyOf", ()))) or not {"enum", "const", "anyOf"} & schema.keys()


def refuse(text: str, where: str) -> None:
    """Refuse one text."""
    if is_refused(text, is_sexual=True):
        raise ConfigError(f"expected texts that the age filter permits {where}, got {text!r}: {REMEDY}.")
