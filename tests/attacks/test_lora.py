"""The LoRA attack is peft's LoRA, and what it learns is what the ecosystem loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from attacks.full_finetune import FullFinetune
from attacks.lora import LoRA
from attacks.transplant import Transplant
from benchmark.config import entries
from benchmark.diffusion import Model
from benchmark.kit import conformance
from benchmark.model.adapters import add_adapters, decomposed, low_rank
from benchmark.store.artifacts import load_delta, save_delta
from benchmark.types import Concept, Examples, Snapshot


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def attack(model: Model, concept: Concept, examples: Examples, **fields: object) -> Snapshot:
    method = LoRA(**{"lr": 1e-2, "batch": 2, "rank": 2, "alpha": 6} | fields)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(0)
    *_, last = method.finetune(model, model, concept, {"concept": examples}, budgets=[5], rng=rng, report=silent)
    return last


def predict(unet: torch.nn.Module, model: Model) -> torch.Tensor:
    z = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(9))
    return unet(z, torch.tensor(300), encoder_hidden_states=model.encode_text(["cat", "dog"])).sample.detach()


def test_load_lora_weights_takes_it(
    model: Model, tiny_folder: Path, concept: Concept, examples: Examples, tmp_path: Path
) -> None:
    """Our merged model predicts what diffusers predicts with the adapter file; alpha is folded in."""
    save_delta(tmp_path, attack(model, concept, examples).delta)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None, local_files_only=True)

    pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")

    ours = model.with_delta(load_delta(tmp_path))
    torch.testing.assert_close(predict(ours.unet, model), predict(pipe.unet, model), atol=1e-5, rtol=1e-4)
    assert not torch.equal(predict(ours.unet, model), predict(model.unet, model))


def test_only_attention_moves(model: Model, concept: Concept, examples: Examples) -> None:
    attacked = model.with_delta(attack(model, concept, examples).delta)

    moved = {
        name
        for (name, new), old in zip(attacked.unet.named_parameters(), model.unet.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert moved
    assert all(name.rpartition(".")[0].endswith(("to_q", "to_k", "to_v", "to_out.0")) for name in moved)


@pytest.mark.slow
def test_training_lowers_the_loss(model: Model, concept: Concept, examples: Examples) -> None:
    losses: list[float] = []

    def report(*, step: int, total: int, loss: float) -> None:
        losses.append(loss)

    method = LoRA(lr=1e-2, batch=4, rank=4)
    rng = torch.Generator().manual_seed(0)
    list(method.finetune(model, model, concept, {"concept": examples}, budgets=[50], rng=rng, report=report))

    assert sum(losses[-20:]) < sum(losses[:20])


def test_rank_is_the_rank(model: Model, concept: Concept, examples: Examples) -> None:
    delta = attack(model, concept, examples, rank=3).delta

    assert {down.shape[0] for down, _ in delta.low_rank.values()} == {3}
    assert {up.shape[1] for _, up in delta.low_rank.values()} == {3}


def test_targets_that_name_nothing_are_an_error(model: Model, concept: Concept, examples: Examples) -> None:
    with pytest.raises(ValueError, match="not found"):
        attack(model, concept, examples, targets=("no_such_layer",))


def test_attacks_start_alike_on_every_model(model: Model, concept: Concept, examples: Examples) -> None:
    """Pairing: against two different models the same seed sees the same batches and the same first adapter."""
    other = model.clone()
    with torch.no_grad():
        other.unet.conv_out.bias.add_(1.0)

    a, b = (attack(m, concept, examples, lr=0.0).delta for m in (model, other))

    assert all(torch.equal(a.low_rank[n][0], b.low_rank[n][0]) for n in a.low_rank)


def layers(part: torch.nn.Module) -> set[str]:
    return {n for n, m in part.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}


@pytest.mark.parametrize("name", ["unet", "flow"])
def test_all_layers_are_every_linear_and_convolution(name: str, concept: Concept, examples: Examples) -> None:
    model = conformance.tiny_model() if name == "unet" else conformance.tiny_flow()

    delta = attack(model, concept, examples, **LoRA.presets["all-layers"]).delta

    assert set(delta.low_rank) == {f"{model.part}.{layer}" for layer in layers(model.denoiser)}
    assert any(pair[0].ndim == 4 for pair in delta.low_rank.values()) or name == "flow"
    model.with_delta(delta)


def test_adapters_of_convolutions_merge_to_the_same_outputs(model: Model) -> None:
    attacked, rng = model.clone(), torch.Generator().manual_seed(0)
    found = add_adapters(attacked, rank=2, alpha=6, targets=sorted(layers(model.unet)), rng=rng)
    with torch.no_grad():
        for layer in found.values():
            layer.lora_B["default"].weight.normal_(std=0.1, generator=rng)

    merged = model.with_delta(low_rank(found, "unet"))

    torch.testing.assert_close(predict(merged.unet, model), predict(attacked.unet, model), atol=1e-4, rtol=1e-3)
    assert (predict(merged.unet, model) - predict(model.unet, model)).abs().max() > 1e-2


def test_dora_merges_to_the_same_outputs(model: Model) -> None:
    """peft's DoRA with its adapters on, and our weights under them, predict the same; convolutions, too."""
    attacked, rng = model.clone(), torch.Generator().manual_seed(0)
    found = add_adapters(attacked, rank=2, alpha=6, targets=sorted(layers(model.unet)), rng=rng, dora=True)
    assert all(t.abs().max() < 1e-6 for t in decomposed(found, "unet").dense.values())
    with torch.no_grad():
        for layer in found.values():
            layer.lora_B["default"].weight.normal_(std=0.1, generator=rng)
            m = layer.lora_magnitude_vector["default"].weight
            m.mul_(1 + 0.1 * torch.randn(m.shape, generator=rng))

    merged = model.with_delta(decomposed(found, "unet"))

    torch.testing.assert_close(predict(merged.unet, model), predict(attacked.unet, model), atol=1e-4, rtol=1e-3)
    assert (predict(merged.unet, model) - predict(model.unet, model)).abs().max() > 1e-2


def test_dora_learns_magnitudes(model: Model, concept: Concept, examples: Examples) -> None:
    """Of plain adapters the change has the rank; what DoRA changes has more."""
    delta = attack(model, concept, examples, dora=True).delta

    assert not delta.low_rank
    ranks = [int(torch.linalg.matrix_rank(t.double(), rtol=1e-3)) for t in delta.dense.values()]
    assert min(ranks) > 2


@pytest.mark.parametrize("name", ["unet", "flow"])
def test_adapters_of_the_text_encoder_reach_what_is_read(name: str, concept: Concept, examples: Examples) -> None:
    """Each encoder has them, they learn, and the denoiser's learn as well."""
    model = conformance.tiny_model() if name == "unet" else conformance.tiny_flow()

    delta = attack(model, concept, examples, text_encoder=True).delta

    attacked, encoders = model.with_delta(delta), [encoder for _, encoder in model.readers]
    assert {n.partition(".")[0] for n, (_, up) in delta.low_rank.items() if up.any()} == {model.part, *encoders}
    own = {n for n in delta.low_rank if n.startswith("text_encoder.")}
    assert own and all(n.endswith(("q_proj", "k_proj", "v_proj", "out_proj")) for n in own)
    assert not torch.equal(attacked.encode_text(["a cat"]), model.encode_text(["a cat"]))


def test_load_lora_weights_takes_the_text_encoders(
    model: Model, tiny_folder: Path, concept: Concept, examples: Examples, tmp_path: Path
) -> None:
    save_delta(tmp_path, attack(model, concept, examples, text_encoder=True).delta)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None, local_files_only=True)

    pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")

    ours, ids = model.with_delta(load_delta(tmp_path)), model.ids(["cat", "dog"])
    torch.testing.assert_close(ours.encode_text(["cat", "dog"]), pipe.text_encoder(ids)[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours.encode_text(["cat", "dog"]), model.encode_text(["cat", "dog"]), atol=1e-4)
    torch.testing.assert_close(predict(ours.unet, model), predict(pipe.unet, model), atol=1e-5, rtol=1e-4)


def test_full_fine_tuning_trains_the_text_encoder_where_it_is_asked_to(
    model: Model, concept: Concept, examples: Examples
) -> None:
    def moved(method: FullFinetune) -> set[str]:
        rng = torch.Generator().manual_seed(0)
        (last,) = method.finetune(model, model, concept, {"concept": examples}, budgets=[2], rng=rng, report=silent)
        return {name.partition(".")[0] for name in last.delta.dense}

    assert moved(FullFinetune(lr=1e-3)) == {"unet"}
    assert moved(FullFinetune(lr=1e-3, text_encoder=True)) == {"unet", "text_encoder"}


def test_a_transplanted_adapter_is_the_bases_lora(model: Model, concept: Concept, examples: Examples) -> None:
    """To the bit, whatever the defended model is."""
    settings: dict[str, Any] = {"lr": 1e-2, "batch": 2, "rank": 2, "alpha": 6}
    other, rng = model.clone(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        other.unet.conv_out.bias.add_(1.0)

    (found,) = Transplant(**settings).finetune(
        other, model, concept, {"concept": examples}, budgets=[5], rng=rng, report=silent
    )

    assert conformance.same(found, attack(model, concept, examples))


def test_fields_that_came_later_are_in_no_key_at_their_defaults() -> None:
    """Results that were kept before stay found; with another value they are other results."""
    listed = ("lora", {"use": "lora", "dora": True}, "full_finetune")
    plain, deep, full = (entries.entry("attack", item) for item in listed)

    assert set(plain.fields) == {"rank", "alpha", "lr", "batch", "targets", "optimizer"}
    assert set(full.fields) == {"lr", "batch", "optimizer"}
    assert deep.fields == {**plain.fields, "dora": True}


@pytest.mark.parametrize("use", ["lora", "full_finetune"])
def test_a_text_encoder_is_required_where_it_is_trained(use: str, concept: Concept) -> None:
    assert entries.entry("attack", {"use": use, "text_encoder": True}).method.requires(concept) == ("readers",)
    assert entries.entry("attack", use).method.requires(concept) == ()
