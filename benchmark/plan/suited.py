"""Whether a family of models has what the methods of a config require: what it lacks is refused before a run begins."""

from collections.abc import Iterable, Iterator, Mapping

from benchmark.config import Config
from benchmark.config.entries import Entry
from benchmark.errors import PlanError
from benchmark.types import Concept


def check_family(config: Config, concepts: Iterable[Concept], family: str, lacks: Mapping[str, str]) -> None:
    """Refuse entries that do not apply to a family.

    Args:
        config: its defenses and attacks, the teacher of benign adaptation, and its precision are looked at.
        concepts: the config's.
        family: how people know it.
        lacks: what it has not, and why.

    Raises:
        PlanError: one line that names each such entry and the reasons.
    """
    if config.raw.precision in lacks:
        why = lacks[config.raw.precision]
        raise PlanError(
            f"expected a precision that applies to {family}, got {config.raw.precision}: {why}; "
            "write `precision: bfloat16`."
        )
    if config.raw.sampling.scheduler != "ddim" and "schedule" in lacks:
        raise PlanError(
            f"expected a scheduler that applies to {family}, got {config.raw.sampling.scheduler}: {lacks['schedule']}; "
            "leave `scheduler` out."
        )
    unfit: dict[str, list[str]] = {}
    for concept in concepts:
        for entry in listed(config):
            for name in required(entry, concept):
                if name in lacks and entry.label not in unfit.setdefault(name, []):
                    unfit[name].append(entry.label)
    if unfit:
        told = "; ".join(f"{', '.join(labels)} ({name}: {lacks[name]})" for name, labels in unfit.items())
        raise PlanError(
            f"expected methods that apply to {family}, got some that need what it lacks: {told}: leave them out, or "
            "change their fields."
        )


def listed(config: Config) -> Iterator[Entry]:
    """Every defense and attack of a config."""
    yield from (*config.defenses, *config.attacks)
    if config.adaptation:
        yield config.adaptation.attack


def required(entry: Entry, concept: Concept) -> Iterator[str]:
    """What an entry requires, what it builds on, and the trials of a tuned one."""
    for one in entry.trials or (entry,):
        yield from one.method.requires(concept)
    if entry.after:
        yield from required(entry.after, concept)
