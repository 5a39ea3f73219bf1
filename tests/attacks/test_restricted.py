"""An attacker behind a service that freezes tensors: they stay to the bit, and he stands beside the others."""

from typing import Any

import pytest
import torch

from attacks.dreambooth import DreamBooth
from attacks.full_finetune import FullFinetune
from attacks.lora import LoRA
from attacks.restricted import Restricted
from benchmark.config import entries
from benchmark.diffusion import Model
from benchmark.kit import conformance
from benchmark.types import Concept, Examples, Snapshot

MASK = ("unet.*.attn2.*", "unet.conv_in.weight")
QUICK: dict[str, Any] = {"lr": 1e-2, "batch": 2}
ATTACKS: dict[str, Restricted] = {
    "lora": LoRA(**QUICK, rank=2),
    "lora-dora": LoRA(**QUICK, rank=2, dora=True),
    "full_finetune": FullFinetune(**QUICK),
    "dreambooth": DreamBooth(**QUICK),
}


def attacked(method: Restricted, model: Model, concept: Concept, examples: Examples) -> Snapshot:
    rng = torch.Generator().manual_seed(0)
    (last,) = method.finetune(
        model, model, concept, {"concept": examples}, budgets=[2], rng=rng, report=conformance.silent
    )
    return last


def frozen(method: Restricted, *mask: str) -> Restricted:
    return type(method)(**{**vars(method), "frozen": mask})


@pytest.mark.parametrize("name", ATTACKS)
def test_frozen_tensors_stay_to_the_bit_and_others_move(
    name: str, model: Model, concept: Concept, examples: Examples
) -> None:
    found = attacked(frozen(ATTACKS[name], *MASK), model, concept, examples).delta
    new, old = model.with_delta(found).unet.state_dict(), model.unet.state_dict()

    masked = {n for n in old if ".attn2." in n or n == "conv_in.weight"}
    assert masked and all(torch.equal(new[n], old[n]) for n in masked)
    moved = {n for n in old if not torch.equal(new[n], old[n])}
    assert moved and any(".attn1." in n for n in moved)
    assert not {f"unet.{n}" for n in masked} & found.names


@pytest.mark.parametrize("use", ["lora", "full_finetune", "dreambooth"])
def test_a_mask_is_part_of_the_key_only_where_there_is_one(use: str) -> None:
    """An empty one is the unrestricted attack, in its fields and so in its key."""
    plain, empty = entries.entry("attack", use), entries.entry("attack", {"use": use, "frozen": []})
    masked = entries.entry("attack", {"use": use, "frozen": ["unet.*"]})

    assert "frozen" not in plain.fields and empty.fields == plain.fields and empty.method == plain.method
    assert masked.fields == {**plain.fields, "frozen": ["unet.*"]}
    assert plain.kind == empty.kind == "weights" and masked.kind == "beside"


def test_a_mask_of_what_no_adapter_touches_changes_nothing(model: Model, concept: Concept, examples: Examples) -> None:
    """Layers are found, drawn and trained as without it, to the bit."""
    plain = ATTACKS["lora"]

    restricted = attacked(frozen(plain, "unet.conv_in.weight", "unet.*.bias"), model, concept, examples)

    assert conformance.same(restricted, attacked(plain, model, concept, examples))


def test_the_text_encoder_is_masked_by_its_own_names(model: Model, concept: Concept, examples: Examples) -> None:
    mask = ("text_encoder.*.q_proj.*", "unet.*")
    adapters = attacked(LoRA(**QUICK, text_encoder=True, frozen=mask), model, concept, examples).delta.low_rank
    whole = attacked(FullFinetune(**QUICK, text_encoder=True, frozen=mask[:1]), model, concept, examples).delta

    assert adapters and all(n.startswith("text_encoder.") and not n.endswith("q_proj") for n in adapters)
    assert {n.partition(".")[0] for n in whole.dense} == {"unet", "text_encoder"}
    assert not [n for n in whole.dense if ".q_proj." in n]


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("mask", "told"), [("unet.nowhere", "names of trained tensors"), ("unet.*", "got none")])
def test_a_mask_of_nothing_or_of_all_is_refused(
    name: str, mask: str, told: str, model: Model, concept: Concept, examples: Examples
) -> None:
    with pytest.raises(ValueError, match=told):
        attacked(frozen(ATTACKS[name], mask), model, concept, examples)
