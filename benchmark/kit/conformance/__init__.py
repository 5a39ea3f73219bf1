"""The checks that every plug-in passes, built-in or not, on a tiny random pipeline: seconds on one core.

    from benchmark.kit.conformance import check_defense

    def test_it_keeps_the_contract() -> None:
        check_defense(Mine, {"steps": 2})

A broken contract is a PluginError that says what was expected and what was got. Fields that are not given are made
small if their names are known (`SMALL`), and keep their defaults otherwise.
"""

from benchmark.kit.conformance.classes import (
    documents_itself,
    fields_survive_json,
    is_a_frozen_dataclass,
    keeps_its_hands_off,
    presets_name_fields,
)
from benchmark.kit.conformance.expect import expect, seeded, silent
from benchmark.kit.conformance.needs import says_what_it_uses
from benchmark.kit.conformance.of_attacks import (
    check_attack,
    finetuned,
    finetunes_alike_under_more_budgets,
    finetunes_each_budget,
    found_prompts_can_be_typed,
    learned,
    rewords_repeatably,
    same,
    searched,
    searches_alike_under_more_budgets,
    searches_each_budget,
    starts_inside_the_trajectory,
)
from benchmark.kit.conformance.of_defenses import check_defense, delta_applies, protect, protects_repeatably
from benchmark.kit.conformance.of_metrics import (
    check_metric,
    measures_distances,
    scores_black_white_and_grey,
    scores_whatever_the_batch,
)
from benchmark.kit.conformance.tiny import ON_MINI, SMALL, small, tiny_concept, tiny_examples, tiny_model, tiny_pipeline
from benchmark.kit.conformance.tiny_flow import tiny_flow, tiny_for

__all__ = [
    "ON_MINI",
    "SMALL",
    "check_attack",
    "check_defense",
    "check_metric",
    "delta_applies",
    "documents_itself",
    "expect",
    "fields_survive_json",
    "finetuned",
    "finetunes_alike_under_more_budgets",
    "finetunes_each_budget",
    "found_prompts_can_be_typed",
    "is_a_frozen_dataclass",
    "keeps_its_hands_off",
    "learned",
    "measures_distances",
    "presets_name_fields",
    "protect",
    "protects_repeatably",
    "rewords_repeatably",
    "same",
    "says_what_it_uses",
    "scores_black_white_and_grey",
    "scores_whatever_the_batch",
    "searched",
    "searches_alike_under_more_budgets",
    "searches_each_budget",
    "seeded",
    "silent",
    "small",
    "starts_inside_the_trajectory",
    "tiny_concept",
    "tiny_examples",
    "tiny_flow",
    "tiny_for",
    "tiny_model",
    "tiny_pipeline",
]
