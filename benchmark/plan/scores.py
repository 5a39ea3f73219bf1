"""Tasks that judge images: one by one, in pairs, or as sets of features."""

from collections.abc import Mapping
from dataclasses import replace

from benchmark.config.entries import Entry
from benchmark.errors import ConfigError
from benchmark.plan.images import data_task, draw, photographed
from benchmark.plan.matrix import Plan
from benchmark.plan.task import Task
from benchmark.types import Concept, Prompt, Split

EMBEDDER_VERSION = 1


def score(
    plan: Plan, concept: Concept, metric: Entry, images: str, prompts: tuple[Prompt, ...], split: Split, label: str
) -> str:
    """The task that scores images. Paired metrics read the undefended base's images too; distances do so unless the
    card has real images of the split.
    """
    is_real = metric.method.per == "set" and bool(concept.pictures) and bool(concept.pictured(split))
    given = plan.once((metric,), ("unpaired",), lambda: unpaired(metric)) if is_real else metric
    metric, card, identity, places = plan.once(
        (given, concept), ("judge", split), lambda: judging(given, concept, split)
    )
    method, parents = metric.method, {"images": images}
    if is_real:
        called = f"{concept.name}: real images of the {split} split"
        real = plan.once((concept,), ("real", split), lambda: photographed(plan, concept, split, called, whole=True))
        parents["reference"], identity = plan.add(real), f"{identity}, to real images {real.fields['sha256'][:12]}"
    elif method.per == "reference":
        parents["reference"] = data_task(plan, concept, metric, "attacker")
    elif method.per != "image":
        label_of = f"{split} images of the base, {concept.name}"
        parents["reference"] = plan.add(
            plan.once((prompts, concept), ("base", split), lambda: draw(plan, prompts, split, {}, label_of))
        )
    if method.per == "set":
        parents = {role: plan.add(embedded(plan, metric, key)) for role, key in parents.items()}
    return plan.add(
        Task(
            kind="score",
            plugin=metric.use,
            version=method.version,
            fields=plan.once(
                (metric,),
                ("scored", identity),
                lambda: {**metric.fields, **dict.fromkeys(places, identity), "identity": identity},
            ),
            base=plan.base,
            concept=card,
            prompts=() if method.per == "set" else prompts,
            parents=parents,
            places=places,
            label=f"{metric.label} of {label}",
        )
    )


def unpaired(metric: Entry) -> Entry:
    """A distance for sets that hold no pairs: a real image is no other image of a prompt and seed."""
    if not getattr(metric.method, "pairs", False):
        return metric
    return replace(metric, method=replace(metric.method, pairs=False))


def judging(metric: Entry, concept: Concept, split: Split) -> tuple[Entry, Concept | None, str, Mapping[str, str]]:
    """A metric for a concept's images of a split: the entry, the card it reads, who it is, and where its files are.

    Raises:
        ConfigError: it names a judge or an embedder that does not exist.
    """
    card = concept.judged_on(split) if metric.method.reads_concept else None
    try:
        method = metric.method.for_card(concept)
        return replace(metric, method=method), card, method.identity(), method.places()
    except ValueError as error:
        raise ConfigError(f"metric {metric.label!r}: {error}") from error


def embedded(plan: Plan, metric: Entry, images: str) -> Task:
    """A task that embeds images; metrics with the same embedder share it."""
    return Task(
        kind="embed",
        plugin="embedder",
        version=EMBEDDER_VERSION,
        fields=plan.once(
            (metric,),
            ("embedder",),
            lambda: {"embedder": metric.method.embedder, "identity": metric.method.embedded_by()},
        ),
        base=plan.base,
        parents={"images": images},
        label=f"features of {plan.tasks[images].label}",
    )
