"""Every file in defenses/, attacks/ and metrics/ keeps its contract. A new file is tested without a new test.

The checks are `benchmark.kit.conformance`'s, one test each.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.base import Attack, PromptAttack, SamplingAttack, WeightAttack
from benchmark.config.registry import find, names
from benchmark.diffusion import Model
from benchmark.errors import PluginError
from benchmark.kit import conformance
from benchmark.types import Concept, Examples
from defenses.base import Defense
from metrics.base import Metric

pytestmark = pytest.mark.usefixtures("plain_kernels")
BASES = [("defense", Defense), ("attack", Attack), ("metric", Metric)]


def small(kind: str, name: str) -> Any:
    """A plug-in with few steps, whatever fields it has."""
    return conformance.small(find(kind, name))


def fitting(method: Any, model: Model) -> Model:
    """The shared model, or one with joint attention for a method that requires it."""
    return conformance.tiny_flow() if "joint" in method.requires(conformance.tiny_concept()) else model


def attacks(of: type[Attack]) -> list[str]:
    return [name for name in names("attack") if issubclass(find("attack", name), of)]


@pytest.mark.parametrize(("kind", "base"), BASES)
def test_every_file_holds_one_frozen_keyword_only_dataclass(kind: str, base: type) -> None:
    for name in names(kind):
        conformance.is_a_frozen_dataclass(find(kind, name), base)


@pytest.mark.parametrize(("kind", "base"), BASES)
def test_every_file_documents_itself(kind: str, base: type) -> None:
    for name in names(kind):
        conformance.documents_itself(find(kind, name), base)


@pytest.mark.parametrize("kind", ["defense", "attack", "metric"])
def test_fields_survive_json(kind: str) -> None:
    for name in names(kind):
        conformance.fields_survive_json(find(kind, name))


@pytest.mark.parametrize("kind", ["defense", "attack", "metric"])
def test_presets_name_known_fields(kind: str) -> None:
    for name in names(kind):
        conformance.presets_name_fields(find(kind, name))


@pytest.mark.parametrize("folder", ["defenses", "attacks", "metrics"])
def test_no_method_prints_saves_seeds_or_picks_a_device(folder: str) -> None:
    for file in Path(folder).glob("*.py"):
        conformance.keeps_its_hands_off(file.read_text(), str(file))


@pytest.mark.parametrize("name", names("defense"))
def test_a_defense_is_a_function_of_its_generator_and_its_delta_applies(
    name: str, model: Model, concept: Concept, examples: Examples
) -> None:
    method = small("defense", name)
    model = fitting(method, model)
    with conformance.says_what_it_uses(method, model, concept):
        delta = conformance.protects_repeatably(method, model, concept, examples)
    conformance.delta_applies(delta, model)


@pytest.mark.parametrize("name", names("attack"))
def test_only_a_weight_attack_changes_weights(name: str) -> None:
    assert (find("attack", name).changes == "weights") == (name in attacks(WeightAttack))


@pytest.mark.parametrize("name", names("attack"))
def test_an_attack_words_a_prompt_the_same_way_again(name: str, concept: Concept) -> None:
    conformance.rewords_repeatably(small("attack", name), concept)


@pytest.mark.parametrize("name", attacks(WeightAttack))
def test_a_weight_attack_yields_each_budget(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    method = small("attack", name)
    with conformance.says_what_it_uses(method, model, concept):
        conformance.finetunes_each_budget(method, model, concept, examples)


@pytest.mark.parametrize("name", attacks(WeightAttack))
def test_more_budgets_change_no_snapshot(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    conformance.finetunes_alike_under_more_budgets(small("attack", name), model, concept, examples)


@pytest.mark.parametrize("name", names("metric"))
def test_a_metric_accepts_black_white_and_grey(name: str) -> None:
    conformance.scores_black_white_and_grey(small("metric", name))


@pytest.mark.parametrize("name", names("metric"))
def test_a_metric_does_not_depend_on_the_batch(name: str) -> None:
    conformance.scores_whatever_the_batch(small("metric", name))


@pytest.mark.parametrize("name", names("metric"))
def test_a_distance_is_a_function_of_two_sets_and_its_generator(name: str) -> None:
    conformance.measures_distances(small("metric", name))


@pytest.mark.parametrize("name", attacks(PromptAttack))
def test_a_prompt_attack_yields_each_budget(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    method = small("attack", name)
    with conformance.says_what_it_uses(method, model, concept):
        conformance.searches_each_budget(method, model, concept, examples)


@pytest.mark.parametrize("name", attacks(PromptAttack))
def test_more_budgets_change_no_found_prompt(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    conformance.searches_alike_under_more_budgets(small("attack", name), model, concept, examples)


@pytest.mark.parametrize("name", attacks(PromptAttack))
def test_found_prompts_can_be_typed(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    conformance.found_prompts_can_be_typed(small("attack", name), model, concept, examples)


@pytest.mark.parametrize("name", attacks(SamplingAttack))
def test_a_sampling_attack_starts_inside_the_trajectory(name: str, model: Model) -> None:
    conformance.starts_inside_the_trajectory(small("attack", name), model)


def test_the_tiny_model_is_the_saved_one(loaded: Model) -> None:
    made = conformance.tiny_model()

    z, t = torch.zeros(1, *made.latent_shape), torch.tensor(5)
    a, b = (m.predict(z, t, m.encode_text(["cat"])) for m in (made, loaded))
    assert torch.equal(a, b)


def test_a_method_is_held_to_what_it_requires(model: Model, concept: Concept) -> None:
    """Words, a schedule and the old scope are noted when they are asked for; the model's class is as before."""
    esd, before = find("defense", "esd"), dict(vars(type(model)))
    uses = {"words": lambda: model.encode_words(model.words(model.ids(["cat"]))), "schedule": lambda: model.pndm(4)}
    uses["u-old"] = lambda: model.scope("u-old")
    with conformance.says_what_it_uses(esd(), model, concept):
        model.scope("x")
    for name, use in uses.items():
        with (
            pytest.raises(PluginError, match=f"`requires` to name {name}"),
            conformance.says_what_it_uses(esd(), model, concept),
        ):
            use()
    with conformance.says_what_it_uses(esd(sampler="pndm", scope="u-old"), model, concept):
        uses["schedule"](), uses["u-old"]()
    assert dict(vars(type(model))) == before


def test_a_method_is_held_to_the_prompts_that_it_says_it_reads(model: Model, concept: Concept) -> None:
    """Texts of the card that are not in a result's key could change without its being computed again."""
    uce, lora = find("defense", "uce"), find("attack", "lora")
    with conformance.says_what_it_uses(uce(erase="defender", keep="prior"), model, concept):
        concept.of("defender"), concept.of(split="prior")
    with (
        pytest.raises(PluginError, match="`reads` to name: defender, got one that reads those of prior"),
        conformance.says_what_it_uses(uce(erase="defender"), model, concept),
    ):
        concept.of("prior")
    with conformance.says_what_it_uses(lora(), model, concept):
        concept.of("attacker")
    with (
        pytest.raises(PluginError, match="`reads` to name: attacker, got one that reads those of"),
        conformance.says_what_it_uses(lora(), model, concept),
    ):
        concept.of("concept")
