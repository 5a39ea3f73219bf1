"""Flow transformers: our sampler is the stock pipelines', our losses the training scripts', and U-Nets did not move."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, denoising_loss, difference, sample
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.model.bases import load
from benchmark.model.flow import FlowModel
from benchmark.model.packed import pack, unpack
from benchmark.model.weights import family_of
from benchmark.types import Delta
from defenses.esd import ESD
from tests import pipelines

FLOWS = ("sd3", "sd3-t5", "flux", "schnell", "flux2", "flux2-distilled")
STEPS = ((4, 3.5), (7, 1.0))
SCRIPT = {"text_encoder_out_layers": (10, 20, 27)}  # the last would be 30, of a Qwen with more layers


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: pipelines.write(name, tmp_path_factory.mktemp(name)) for name in FLOWS}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, FlowModel]:
    return {name: load(folder) for name, folder in folders.items()}  # type: ignore[misc]


def noise(model: Model, n: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, *model.latent_shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def texts(model: Model) -> tuple[Tensor, Tensor]:
    return model.encode_text(["a cat", "dog"]), model.encode_text(["", ""])


@pytest.mark.parametrize("name", FLOWS)
def test_sampling_is_the_stock_pipelines(name: str, folders: dict[str, Path], models: dict[str, FlowModel]) -> None:
    model = models[name]
    pipe = family_of(folders[name]).module.pipeline(folders[name], dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    z, (text, null) = noise(model), texts(model)
    assert text.shape[1:] == model.text_shape
    size = {"height": 8, "width": 8, "output_type": "latent", "max_sequence_length": 10}
    for steps, guidance in STEPS:
        ours = sample(model, z, text, null, steps=steps, guidance=guidance)
        settings = {**size, "num_inference_steps": steps, "guidance_scale": guidance}
        if name.startswith("sd3"):
            theirs = pipe(prompt=["a cat", "dog"], negative_prompt="", latents=z.clone(), **settings).images
        elif name.startswith("flux2"):
            settings |= {"max_sequence_length": model.text_shape[0]}
            tokens = pack(z).transpose(1, 2).unflatten(2, (2, 2))
            theirs = model.to_latent(pipe(prompt=["a cat", "dog"], latents=tokens, **settings).images)
        else:
            packed = pipe(prompt=["a cat", "dog"], latents=pack(z), **settings).images
            theirs = unpack(packed, *model.latent_shape[1:])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


class Line(FlowModel):
    """A transformer that knows the answer: v = eps - z_0, for one pair."""

    pair: ClassVar[tuple[Tensor, Tensor]]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 4, 4, 4

    @property
    def text_shape(self) -> tuple[int, int]:
        return 3, 2

    @property
    def tokens(self) -> int:
        return 16

    def velocity(self, z_s: Tensor, s: Tensor, text: Tensor) -> Tensor:
        z_0, eps = self.pair
        return eps - z_0


def line(**settings: Any) -> Line:
    Line.pair = (torch.full((1, 4, 4, 4), 2.0), torch.ones(1, 4, 4, 4))
    names = ("vae", "text_encoder", "tokenizer")
    layer = torch.nn.Linear(1, 1)
    return Line(transformer=layer, scheduler=FlowMatchEulerDiscreteScheduler(**settings), **dict.fromkeys(names))  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}])
@pytest.mark.parametrize("steps", [1, 7])
def test_euler_reaches_the_image_along_a_line(settings: dict[str, Any], steps: int) -> None:
    model = line(**settings)
    z_0, eps = model.pair
    text = torch.zeros(1, 3, 2)

    torch.testing.assert_close(sample(model, eps, text, text, steps=steps, guidance=1.0), z_0)


def test_a_training_time_is_an_entry_of_the_scripts_table() -> None:
    """SD 3's script: logit-normal u, index floor(1000 u) of the shifted table; FLUX': uniform, of the plain one."""
    model = line(shift=3.0)
    table = torch.linspace(1, 1000, 1000).flip(0) / 1000
    table = 3 * table / (1 + 2 * table)
    u = torch.randn(64, generator=torch.Generator().manual_seed(5)).sigmoid()

    drawn = model.times(64, rng=torch.Generator().manual_seed(5))

    torch.testing.assert_close(drawn, table[(u * 1000).long()])


def test_the_loss_is_the_scripts(models: dict[str, FlowModel]) -> None:
    model = models["sd3"]
    z_0, (text, _) = noise(model, seed=3), texts(model)
    g = torch.Generator().manual_seed(4)
    s = model.times(2, rng=g).reshape(-1, 1, 1, 1)
    eps = torch.randn(z_0.shape, generator=g)
    z_s = (1 - s) * z_0 + s * eps
    rows = model.pooled_rows  # type: ignore[attr-defined]
    v = model.transformer(
        hidden_states=z_s,
        timestep=1000 * s.flatten(),
        encoder_hidden_states=text[:, :-rows],
        pooled_projections=text[:, -rows:].flatten(1)[:, :40],
    ).sample

    loss = denoising_loss(model, z_0, text, rng=torch.Generator().manual_seed(4))

    torch.testing.assert_close(loss, F.mse_loss(v, eps - z_0))


def test_packing_is_undone() -> None:
    z = torch.arange(2 * 4 * 4 * 6.0).reshape(2, 4, 4, 6)

    assert torch.equal(unpack(pack(z), 4, 6), z)
    assert pack(z).shape == (2, 6, 16)


def test_noise_and_image_are_found_again() -> None:
    model = line()
    z_0, eps, s = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    z_s, v = model.noised(z_0, eps, s), model.target(z_0, eps, s)

    torch.testing.assert_close(model.to_clean(z_s, v, s), z_0)
    torch.testing.assert_close(model.to_noise(z_s, v, s), eps)


def test_gradients_reach_word_vectors_by_both_ways(models: dict[str, FlowModel]) -> None:
    """Through the hidden states, and through the pooled vector."""
    model = models["sd3"]
    words = model.words(model.ids(["cat"])).detach().requires_grad_()
    rows = model.pooled_rows  # type: ignore[attr-defined]
    text = model.encode_words(words)

    for part in (text[:, :-rows], text[:, -rows:]):
        (gradient,) = torch.autograd.grad(part.square().sum(), words, retain_graph=True)
        assert float(gradient.abs().sum()) > 0


def test_a_second_image_attention_is_not_the_text() -> None:
    """SD 3.5-medium has one, called attn2 as the attention to the text of a U-Net is."""
    from diffusers import SD3Transformer2DModel

    sizes = {"sample_size": 4, "patch_size": 1, "in_channels": 4, "out_channels": 4, "attention_head_dim": 8}
    sizes |= {"num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16}
    transformer = SD3Transformer2DModel(**sizes, num_layers=2, pooled_projection_dim=40, dual_attention_layers=(0,))
    model = replace(line(), transformer=transformer)

    names = {name for name, _ in transformer.named_parameters()}
    assert any(".attn2." in name for name in names)
    for scope in ("x", "x-strict", "u"):
        assert not any(".attn2." in name for name in model.scope(scope)), scope  # type: ignore[arg-type]
    assert any(".attn2." in name for name in model.scope("selfattn"))
    kinds = {name.split(".attn.")[1].split(".")[0] for name in model.scope("x-strict")}
    assert kinds == {"add_k_proj", "add_v_proj"}
    assert model.scope("full") == names


def test_a_single_block_has_one_set_of_weights_for_text_and_image(models: dict[str, FlowModel]) -> None:
    """So that no scope may claim it for the text, or for the image."""
    for name, fused in (("flux", "to_q"), ("flux2", "to_qkv_mlp_proj")):
        model, rows = models[name], list[int]()
        layer = model.transformer.get_submodule(f"single_transformer_blocks.0.attn.{fused}")
        handle = layer.register_forward_hook(lambda _, inputs, __, rows=rows: rows.append(inputs[0].shape[1]))
        text = texts(model)[0]
        with torch.no_grad():
            model.predict(noise(model), torch.tensor(0.5), text)
        handle.remove()
        read = model.text_shape[0] - getattr(model, "pooled_rows", 0)
        assert rows == [read + model.tokens], name
        for scope in ("x", "x-strict", "selfattn"):
            assert not any(p.startswith("single_") for p in model.scope(scope)), (name, scope)  # type: ignore[arg-type]


def test_klein_reads_the_layers_of_its_pipeline(folders: dict[str, Path], models: dict[str, FlowModel]) -> None:
    """Not those of its training script, which are others."""
    model = models["flux2"]
    pipe = family_of(folders["flux2"]).module.pipeline(folders["flux2"], dtype=torch.float32)
    settings = {"prompt": ["a cat", ""], "max_sequence_length": model.text_shape[0]}
    with torch.no_grad():
        ours = model.encode_text(["a cat", ""])
        theirs, script = (pipe.encode_prompt(**settings, **layers)[0] for layers in ({}, SCRIPT))
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, script, atol=1e-3)


def test_klein_is_guided_unless_it_is_distilled(models: dict[str, FlowModel]) -> None:
    for name, passes in (("flux2", 2), ("flux2-distilled", 1)):
        model = models[name]
        z, (text, null) = noise(model), texts(model)
        with torch.no_grad():
            low, high = (model.guided(z, torch.tensor(0.5), text, null, scale) for scale in (1.0, 8.0))
        assert torch.equal(low, high) == (passes == 1), name
        assert (model.guided_passes(1.0), model.guided_passes(8.0)) == (1, passes)


def test_klein_latents_are_normalised_by_the_vaes_statistics(models: dict[str, FlowModel]) -> None:
    model = models["flux2"]
    norm, z = model.vae.bn, noise(model)
    patches = pack(z).transpose(1, 2).unflatten(2, (2, 2))

    torch.testing.assert_close(model.from_latent(model.to_latent(z)), z)
    torch.testing.assert_close(  # torch's own layer, in evaluation
        pack(model.to_latent(z)).transpose(1, 2).unflatten(2, (2, 2)), norm(patches)
    )
    mean, deviation = model.posterior(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert mean.shape[1:] == model.latent_shape
    assert not deviation.any()  # the script takes the mode


def test_features_are_the_images(models: dict[str, FlowModel]) -> None:
    """Of both kinds of blocks, whatever they answer with."""
    for name in ("sd3", "flux", "flux2"):
        model, found = models[name], list[Tensor]()
        handles = [
            layer.register_forward_hook(lambda _, __, answer, m=model, f=found: f.append(m.features(answer)))
            for layer in model.layers()
        ]
        with torch.no_grad():
            model.predict(noise(model), torch.tensor(0.5), texts(model)[0])
        for handle in handles:
            handle.remove()
        assert [h.shape[:2] for h in found] == [(2, model.tokens)] * 2, name


@pytest.mark.parametrize("name", ["sd3", "flux", "flux2"])
def test_merged_adapters_predict_what_they_did(name: str, models: dict[str, FlowModel]) -> None:
    model = models[name]
    attacked, (text, _) = model.clone(), texts(model)
    rng = torch.Generator().manual_seed(0)
    layers = add_adapters(attacked, rank=2, alpha=4, targets=("to_q", "to_k", "to_v", "to_out.0"), rng=rng)
    assert any("add_q_proj" in layer for layer in layers)
    assert any(layer.startswith("single_") for layer in layers) == (name != "sd3")
    if name == "flux2":
        assert {layer.rpartition(".")[2] for layer in layers if layer.startswith("single_")} == {
            "to_qkv_mlp_proj",
            "to_out",
        }
    for layer in layers.values():
        layer.lora_B["default"].weight.data.normal_(generator=rng)
    z, s = noise(model), torch.tensor([0.3, 0.8])

    merged = model.with_delta(low_rank(layers, "transformer"))

    with torch.no_grad():
        on = attacked.predict(z, s, text)
        torch.testing.assert_close(merged.predict(z, s, text), on, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(on, model.predict(z, s, text))


def test_esd_without_eta_aims_at_the_empty_text(models: dict[str, FlowModel]) -> None:
    model = models["sd3"]
    z, s, (text, null) = noise(model), torch.tensor(0.6), texts(model)
    c, empty = text[:1].expand(2, -1, -1), null[:1].expand(2, -1, -1)
    with torch.no_grad():
        loss = ESD(eta=0.0).loss(model, model, z, s, c, empty)
        wanted = F.mse_loss(model.predict(z, s, c), model.predict(z, s, empty))
    torch.testing.assert_close(loss, wanted)


def test_a_distilled_guidance_is_read_by_dev_alone(models: dict[str, FlowModel]) -> None:
    for name, reads in (("flux", True), ("schnell", False)):
        model = models[name]
        z, (text, null) = noise(model), texts(model)
        with torch.no_grad():
            low, high = (model.guided(z, torch.tensor(0.5), text, null, scale) for scale in (1.0, 8.0))
        assert torch.equal(low, high) != reads, name
        assert model.guided_passes(8.0) == 1


def test_float16_is_refused(models: dict[str, FlowModel]) -> None:
    for model in models.values():
        with pytest.raises(ValueError, match="overflows"):
            replace(model, precision="float16")


def test_flux_words_cannot_be_searched(models: dict[str, FlowModel]) -> None:
    for name, who in (("flux", "T5"), ("flux2", "Qwen3")):
        with pytest.raises(ValueError, match=who):
            models[name].encode_words(torch.zeros(1, 12, 16))


def test_latents_and_images_are_shifted_as_the_pipeline_does(models: dict[str, FlowModel]) -> None:
    model = models["sd3"]
    z = noise(model)

    torch.testing.assert_close(model.from_latent(model.to_latent(z)), z)
    torch.testing.assert_close(model.to_latent(z), (z - 0.0609) * 1.5305)


def test_a_delta_names_the_transformer(models: dict[str, FlowModel]) -> None:
    model = models["sd3"]
    changed = model.clone()
    with torch.no_grad():
        changed.transformer.proj_out.bias.add_(1.0)

    assert set(difference(changed, model).dense) == {"transformer.proj_out.bias"}


# U-Nets.


@pytest.mark.parametrize("steps", [4, 6, 7, 12, 25, 50, 999])
def test_ddim_is_diffusers_to_the_bit(model: Model, steps: int) -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.set_timesteps(steps)
    times = model.trajectory(steps)
    g = torch.Generator().manual_seed(steps)
    z, eps = torch.randn(2, 4, 4, 4, generator=g), torch.randn(2, 4, 4, 4, generator=g)

    assert torch.equal(times[:-1], theirs.timesteps)
    for t, t_next in pairwise(times):
        assert torch.equal(model.step(z, eps, t, t_next), theirs.step(eps, t, z).prev_sample)


# Memory.


def places(model: Model) -> dict[str, int]:
    """Where each parameter's memory begins."""
    return {f"{part}.{n}": p.data_ptr() for part, m in model.parts.items() for n, p in m.named_parameters()}


@pytest.mark.parametrize("name", ["sd3-t5", "flux", "flux2"])
def test_all_that_a_pipeline_is_made_of_is_written(name: str, models: dict[str, FlowModel], folders: Any) -> None:
    """T5 and language models too, which no delta changes."""
    pipe = family_of(folders[name]).module.pipeline(folders[name], **models[name].components)
    for part in (*family_of(folders[name]).parts, "tokenizer"):
        assert getattr(pipe, part) is getattr(models[name], part)
    assert not any(p.requires_grad for part in models[name].modules.values() for p in part.parameters())


@pytest.mark.parametrize("name", ["sd3", "flux", "flux2"])
def test_copies_share_what_does_not_change(name: str, models: dict[str, FlowModel]) -> None:
    model = models[name]
    names = sorted(model.scope("x"))[:3]
    delta = Delta(dense={f"transformer.{n}": torch.ones_like(model.transformer.get_parameter(n)) for n in names})
    before = places(model)

    defended = model.with_delta(delta)
    attacked = defended.clone(only=())
    trained = defended.clone(only={"vae"})

    assert {n for n, at in places(defended).items() if at != before[n]} == delta.names
    assert places(attacked) == places(defended)
    assert {n.partition(".")[0] for n, at in places(trained).items() if at != places(defended)[n]} == {"vae"}
    z, s, (text, _) = noise(model), torch.tensor([0.3, 0.8]), texts(model)
    whole = model.clone()
    for n in names:
        whole.transformer.get_parameter(n).data.add_(1)
    with torch.no_grad():
        assert torch.equal(attacked.predict(z, s, text), whole.predict(z, s, text))
        assert not torch.equal(model.predict(z, s, text), whole.predict(z, s, text))


@pytest.mark.parametrize("name", ["sd3-t5", "flux", "flux2"])
def test_in_bfloat16_what_is_frozen_is_half_and_what_is_trained_is_not(name: str, folders: dict[str, Path]) -> None:
    model = replace(load(folders[name], precision="bfloat16"), precision="bfloat16")
    listener = getattr(model, model.listeners[0][1])
    assert {p.dtype for part in (model.denoiser, listener) for p in part.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}
    text, null = texts(model)
    assert text.dtype == torch.float32

    attacked, rng = model.clone(only=()), torch.Generator().manual_seed(0)
    layers = add_adapters(attacked, rank=2, alpha=2, targets=("to_q", "to_out.0"), rng=rng)
    trained = [p for p in attacked.denoiser.parameters() if p.requires_grad]
    denoising_loss(attacked, noise(model), text, rng=rng).backward()
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained if p.grad is not None} == {torch.float32}

    edited = model.clone(only={"transformer"})
    assert {p.dtype for p in edited.denoiser.parameters()} == {torch.float32}
    tiny = Delta(dense={"transformer.proj_out.weight": torch.full_like(edited.denoiser.proj_out.weight, 1e-6)})  # type: ignore[union-attr,arg-type]
    kept = difference(model.with_delta(tiny), model).dense["transformer.proj_out.weight"]
    torch.testing.assert_close(kept, tiny.dense["transformer.proj_out.weight"], rtol=0.05, atol=0)  # lost in bfloat16
    assert low_rank(layers, "transformer").low_rank

    full = load(folders[name])
    z, s = noise(model), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        torch.testing.assert_close(model.predict(z, s, text), full.predict(z, s, texts(full)[0]), atol=0.2, rtol=0.1)
    assert sample(model, z, text, null, steps=2, guidance=2.0).dtype == torch.float32
