"""The LoRA attack is peft's LoRA, and what it learns is what the ecosystem loads."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from attacks.lora import LoRA
from benchmark.diffusion import Model
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
