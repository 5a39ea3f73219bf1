"""What an attack must do: a snapshot at each budget, the same whatever budgets follow, prompts one can type."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from attacks.base import Attack, PromptAttack, SamplingAttack, WeightAttack
from benchmark.diffusion import Model
from benchmark.kit.conformance.classes import check_class
from benchmark.kit.conformance.expect import expect, global_state_kept, seeded, silent, unchanged
from benchmark.kit.conformance.needs import says_what_it_uses
from benchmark.kit.conformance.tiny import small, tiny_concept, tiny_examples
from benchmark.kit.conformance.tiny_flow import tiny_for
from benchmark.types import PROMPT, Concept, Examples, Report, Snapshot

STEPS = 12  # of a trajectory


def check_attack(cls: type[Attack], fields: Mapping[str, Any] | None = None) -> None:
    """Run all checks of an attack, as `check_defense`."""
    check_class(cls, Attack, fields)
    method, concept, examples = small(cls, fields), tiny_concept(), tiny_examples()
    model = tiny_for(method)
    rewords_repeatably(method, concept)
    derives_from_what_it_changes(method)
    with unchanged(model), says_what_it_uses(method, model, concept):
        if isinstance(method, WeightAttack):
            finetunes_each_budget(method, model, concept, examples)
            finetunes_alike_under_more_budgets(method, model, concept, examples)
        elif isinstance(method, PromptAttack):
            searches_each_budget(method, model, concept, examples)
            searches_alike_under_more_budgets(method, model, concept, examples)
            found_prompts_can_be_typed(method, model, concept, examples)
        elif isinstance(method, SamplingAttack):
            starts_inside_the_trajectory(method, model)


def derives_from_what_it_changes(method: Attack) -> None:
    """An attack with a verb derives from the class that declares it; one that only rewords changes prompts."""
    for changes, base in (("weights", WeightAttack), ("sampling", SamplingAttack)):
        if method.changes == changes:
            expect(isinstance(method, base), f"an attack that changes {changes} to derive from {base.__name__}")


def rewords_repeatably(method: Attack, concept: Concept) -> None:
    """What an attacker asks for in place of a prompt is a text, and the same one each time."""
    card = replace(concept, paraphrases=("small pet",))
    with global_state_kept():
        first, second = (method.reword("a cat", card) for _ in range(2))
    expect(isinstance(first, str) and first, "`reword` to return a text", repr(first))
    expect(first == second, f"`reword` to return {first!r} again", repr(second))


def finetunes_each_budget(method: WeightAttack, model: Model, concept: Concept, examples: Examples) -> None:
    """Each step is reported once, each snapshot differs from the last, and a learned word is asked for."""
    card, budgets, seen = replace(concept, paraphrases=("small pet",)), method.budgets([1, 3]), list[int]()

    def report(*, step: int, total: int, loss: float) -> None:
        seen.append(step)

    with global_state_kept():
        snapshots = finetuned(method, model, card, examples, budgets, report)
    steps = [s.steps for s in snapshots]
    expect(steps == list(budgets), f"a snapshot at each of {list(budgets)}", steps)
    expect(seen == list(range(1, max(budgets) + 1)), "one report for each step, from 1", seen)
    expect(any(bool(t.any()) for t in learned(snapshots[-1]).values()), "weights or words that changed", "none")
    expect(not any(same(a, b) for a, b in pairwise(snapshots)), "snapshots that differ from the last", "the same twice")
    unasked = [word for word in snapshots[-1].tokens if word not in method.reword("a cat", card)]
    expect(not unasked, "`reword` to ask for each learned word", f"prompts without {unasked}")


def finetunes_alike_under_more_budgets(
    method: WeightAttack, model: Model, concept: Concept, examples: Examples
) -> None:
    """The state after b steps is the end of a run of b steps."""
    card = replace(concept, paraphrases=("small pet",))
    once, often = (
        finetuned(method, model, card, examples, method.budgets(asked), silent)[-1] for asked in ([4], [1, 2, 3, 4])
    )
    expect(learned(once), "a snapshot that holds weights or words", "an empty one")
    expect(same(once, often), "the same last snapshot however many come before it", "another one")


def searches_each_budget(method: PromptAttack, model: Model, concept: Concept, examples: Examples) -> None:
    """Once a step it reports, and it is a function of its generator; the global generators stay as they were."""
    seen = list[int]()

    def report(*, step: int, total: int, loss: float) -> None:
        seen.append(step)

    card, data = replace(concept, phrase="at"), dict.fromkeys(method.needs, examples)
    with global_state_kept():
        snapshots = list(method.search(model, model, card, data, budgets=[1, 3], rng=seeded(3), report=report))  # type: ignore[arg-type]
    steps = [s.steps for s in snapshots]
    expect(steps == [1, 3], "a snapshot at each of [1, 3]", steps)
    expect(seen == [1, 2, 3], "one report for each step, from 1", seen)
    expect(all(s.delta.is_zero and not s.tokens for s in snapshots), "a prompt attack to change prompts only")
    again = searched(method, model, concept, examples, [1, 3])
    expect(snapshots == again, "the same prompts for the same seed, without `base` unless it `uses_base`", again)


def searches_alike_under_more_budgets(method: PromptAttack, model: Model, concept: Concept, examples: Examples) -> None:
    """The prompts after b steps are those of a run of b steps."""
    for snapshot in searched(method, model, concept, examples, [1, 2, 3, 4]):
        alone = searched(method, model, concept, examples, [snapshot.steps])
        expect(alone == [snapshot], f"{snapshot} however many budgets come before it", alone)


def found_prompts_can_be_typed(method: PromptAttack, model: Model, concept: Concept, examples: Examples) -> None:
    """Their tokens decode to the text and the text encodes to them; what leaves no room for words is refused."""
    for snapshot in searched(method, model, concept, examples, [1, 3]):
        expect(snapshot.prompts, "prompts in every snapshot", "none")
        if "concept" in method.reads:
            asked = len(concept.of("concept"))
            expect(len(snapshot.prompts) == asked, f"a text for each of {asked} prompts", len(snapshot.prompts))
        for prompt in snapshot.prompts:
            if prompt == PROMPT:  # nothing better was found than the prompt itself
                continue
            text = prompt.replace(PROMPT, "").strip()
            ids = model.tokenizer(text, add_special_tokens=False).input_ids
            room = model.tokenizer.model_max_length - 2
            expect(0 < len(ids) <= room, f"a prompt of 1 to {room} tokens", len(ids))
            expect(not set(ids) & set(model.tokenizer.all_special_ids), "words, no special tokens", repr(text))
            expect(model.tokenizer.decode(ids).strip() == text, "a text that its own tokens spell", repr(text))
            expect(len(text.split()) == len(ids), "one word for each token", repr(text))


def starts_inside_the_trajectory(method: SamplingAttack, model: Model) -> None:
    """Same noise, same start; the models and the global generators stay as they were.

    An attack that lets the model read something else, or draws more, may start at the noise itself; one that gives
    other noise, at its place.
    """
    asked = type(method).ask is not SamplingAttack.ask
    budgets = method.budgets([1, 3])
    expect(budgets and list(budgets) == sorted(set(budgets)), "rising budgets", budgets)
    budgets = tuple(budget for budget in budgets if not method.misfit(budget, STEPS))
    expect(budgets, f"a budget that fits {STEPS} steps", "none")
    z_T = torch.randn(2, *model.latent_shape, generator=seeded(3))
    text = model.encode_text(["a cat", "a dog"])
    null, noise = model.encode_text([""]).expand_as(text), z_T.clone()
    with global_state_kept():
        for budget in budgets:
            (z, at), (again, _) = (
                method.begin(model, model, z_T, text, null, budget=budget, steps=STEPS, scale=2.0) for _ in range(2)
            )
            expect(z.shape == z_T.shape, f"latents {tuple(z_T.shape)}", tuple(z.shape))
            expect(bool(torch.isfinite(z).all()), "finite latents", "others")
            expect(torch.equal(z, again), "the same start for the same noise", "another one")
            least = 0 if asked or method.images(1, budget) > 1 or not torch.equal(z, z_T) else 1
            expect(
                isinstance(at, int) and least <= at < STEPS,
                f"a number of steps from {least} to {STEPS - 1} of {STEPS}",
                at,
            )
    read = method.ask(model, model, text)
    expect(read.shape == text.shape and read.dtype == text.dtype, f"texts {tuple(text.shape)}", tuple(read.shape))
    expect(torch.equal(z_T, noise), "the noise to stay as it was", "other noise")


def finetuned(
    method: WeightAttack, model: Model, concept: Concept, examples: Examples, budgets: Sequence[int], report: Report
) -> list[Snapshot]:
    """What a weight attack yields; the base of one that reads it differs from the model in its VAE."""
    base = model.clone()
    for parameter in base.vae.parameters() if method.uses_base else ():
        parameter.data.add_(1e-3)
    data = dict.fromkeys(method.needs, examples)
    return list(method.finetune(model, base, concept, data, budgets=budgets, rng=seeded(3), report=report))  # type: ignore[arg-type]


def searched(
    method: PromptAttack, model: Model, concept: Concept, examples: Examples, budgets: Sequence[int]
) -> list[Snapshot]:
    """What a prompt attack yields on a card whose attacker names the concept; it gets only what it declares."""
    data, base = dict.fromkeys(method.needs, examples), model if method.uses_base else None
    card = replace(concept, phrase="at")
    return list(method.search(model, base, card, data, budgets=budgets, rng=seeded(3), report=silent))  # type: ignore[arg-type]


def learned(snapshot: Snapshot) -> dict[str, Tensor]:
    """All numbers of a snapshot, by name: changed weights, adapters, new words."""
    pairs = {f"{n}.{i}": t for n, pair in snapshot.delta.low_rank.items() for i, t in enumerate(pair)}
    return {**snapshot.delta.dense, **pairs, **snapshot.tokens}


def same(a: Snapshot, b: Snapshot) -> bool:
    """Whether two snapshots hold the same numbers, to the bit."""
    x, y = learned(a), learned(b)
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)
