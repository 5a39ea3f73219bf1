"""A config -> a session: everything is checked that can be before a model is loaded, and the matrix is planned."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.config import Config
from benchmark.config.imported import USE
from benchmark.data import load_concept, together
from benchmark.errors import ConfigError, DataError, unknown
from benchmark.model import bases
from benchmark.plan import Plan, build
from benchmark.plan.suited import check_family
from benchmark.results.folder import claim_folder, identity
from benchmark.session.session import Session
from benchmark.store import Store
from benchmark.types import Concept


def prepare(
    config: Config,
    *,
    source: str,
    out: Path | None,
    store: Path,
    claim: bool = True,
    weights: bases.Weights = "download",
) -> Session:
    """Check everything that can be checked before a model is loaded, and plan.

    Args:
        claim: take the folders; False only looks.
        weights: get them if they are not here, insist on those that are, or plan without, under a provisional base.

    Raises:
        InputError: a name, a file or a folder is wrong.
    """
    given = cards(config)  # first: a model may have to be downloaded
    check_drawn([*given["concepts"], *filter(None, [given["subject"]]), *given["development"].values()])
    model = bases.find(config.raw.model, weights)
    check_imported(config, model)
    if family := bases.expected(config.raw.model, model.folder):
        check_family(config, given["concepts"], family.pipelines[0], family.lacks)
    plan = build(config, model.base, **given)
    found = Session(plan, Store(store), model.folder, out or Path("runs") / config.raw.name, source, model.revision)
    found.store.refuse(found.out)
    if claim:
        found.store.open()
        claim_folder(found.out, identity(plan))
    return found


def check_imported(config: Config, model: bases.Found) -> None:
    """Refuse a change that was imported for another base; without the weights of the base nobody knows yet.

    Raises:
        ConfigError: the first of them.
    """
    for part in (part for defense in config.defenses for part in defense.chain if part.use == USE):
        for concept, change in part.method.changes.items():
            if model.folder is not None and change.base != model.base:
                raise ConfigError(
                    f"expected changes of {config.raw.model} from {part.label!r}, got one of {change.model} for "
                    f"{concept!r} in {change.folder}: import it with `--base {config.raw.model}`."
                )


def check_drawn(concepts: Iterable[Concept]) -> None:
    """Refuse a card whose subject no code draws.

    Raises:
        DataError: the first of them.
    """
    for concept in concepts:
        if concept.drawn:
            from benchmark.mini.subjects import SUBJECTS  # loads torch

            if concept.drawn not in SUBJECTS:
                raise DataError(
                    unknown(f"subject under `drawn` in the card {concept.name!r}:", concept.drawn, SUBJECTS)
                )


def planned(config: Config, base: str) -> Plan:
    """The plan of a config on a base, with the cards that it names.

    Raises:
        DataError: there is no such card, or it cannot be used.
    """
    return build(config, base, **cards(config))


def cards(config: Config) -> dict[str, Any]:
    """The cards that a config names, as `build` takes them.

    Raises:
        DataError: there is no such card, or it cannot be used.
    """
    card = partial(load_concept, model=config.raw.model)
    return {
        "concepts": [together.load(item, config.raw.model) for item in config.raw.concepts],
        "subject": card(config.adaptation.subject) if config.adaptation else None,
        "development": {entry.develop: card(entry.develop) for entry in config.attacks if entry.develop},
    }
