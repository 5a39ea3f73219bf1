"""EraseAnything: its maps are those of the attention, its losses those of its equations, on each flow family."""

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model
from benchmark.kit.conformance import tiny_model
from benchmark.model import load
from benchmark.model.adapters import add_adapters
from benchmark.tokens import span
from defenses.erase_anything import TARGETS, EraseAnything
from defenses.joint import Maps, attended
from tests import pipelines

FLOWS = ("sd3-t5", "flux", "flux2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {name: load(pipelines.write(name, tmp_path_factory.mktemp(name))) for name in FLOWS}


def latents(model: Model, n: int = 1) -> Tensor:
    return torch.randn(n, *model.latent_shape, generator=Generator().manual_seed(0))


def test_a_map_is_the_share_of_attention_to_the_words() -> None:
    g = Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 4, 8, generator=g), torch.randn(2, 3, 6, 8, generator=g)
    chosen = torch.tensor([[1.0, 0, 0, 1, 0, 0], [1.0] * 6])
    found = attended(q, k, chosen)

    wanted = torch.zeros(4)
    for x in range(4):
        for head in range(3):
            e = [float(torch.exp(q[0, head, x] @ k[0, head, y] / 8**0.5)) for y in range(6)]
            wanted[x] += (e[0] + e[3]) / sum(e) / 3
    torch.testing.assert_close(found[0], wanted)
    torch.testing.assert_close(found[1], torch.ones(4))  # all of it goes somewhere


def test_the_words_of_a_phrase_are_found_in_its_text(models: dict[str, Model]) -> None:
    assert span([7, 1, 2, 8], [7, 8]) == [1, 2]
    assert span([7, 8, 8], [7, 8]) == [2]
    clip, behind = [1, 2, 3], 12
    assert models["sd3-t5"].rows_of("cat")[:3] == clip
    assert min(models["sd3-t5"].rows_of("cat")[3:]) == behind
    heard = len(models["flux"].rows_of("cat"))
    assert models["flux"].rows_of("cat") == list(range(heard))
    model: Any = models["flux2"]
    ids = model.tokenizer(model.chat(["cat"])[0]).input_ids
    assert model.tokenizer.decode([ids[row] for row in model.rows_of("cat")]) == "cat"


@pytest.mark.parametrize("name", FLOWS)
def test_maps_are_those_of_the_blocks_own_projections(name: str, models: dict[str, Model]) -> None:
    """Computed again from what a block's layers answered: projections, norms, rotations, in the family's order."""
    model, kept = models[name], dict[str, Any]()
    block: Any = model.denoiser.transformer_blocks[0].attn  # type: ignore[union-attr,index]
    handles = [
        getattr(block, layer).register_forward_hook(lambda _, __, out, layer=layer: kept.update({layer: out}))
        for layer in ("to_q", "to_k", "add_k_proj", "add_q_proj")
    ]
    handles.append(block.register_forward_pre_hook(lambda _, __, more: kept.update(more), with_kwargs=True))
    text, rows = model.encode_text(["cat"]), model.rows_of("cat")
    with torch.no_grad(), Maps(model, [rows], 1) as maps:
        model.predict(latents(model), torch.tensor(0.5), text)
    for handle in handles:
        handle.remove()

    heads = kept["to_q"].shape[-1] // block.heads
    shaped = {layer: kept[layer].unflatten(-1, (-1, heads)) for layer in ("to_q", "to_k", "add_k_proj", "add_q_proj")}
    image_first = name.startswith("sd3")
    if not image_first:
        norms = {"to_q": "norm_q", "to_k": "norm_k", "add_q_proj": "norm_added_q", "add_k_proj": "norm_added_k"}
        shaped = {layer: getattr(block, norms[layer])(x) for layer, x in shaped.items()}
    both = [[shaped["to_q"], shaped["add_q_proj"]], [shaped["to_k"], shaped["add_k_proj"]]]
    q, k = (torch.cat(pair if image_first else pair[::-1], dim=1) for pair in both)
    if not image_first:
        q, k = (apply_rotary_emb(x, kept["image_rotary_emb"], sequence_dim=1) for x in (q, k))
    n = shaped["to_q"].shape[1]
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / heads**0.5).softmax(-1).mean(1)
    image, columns = (slice(0, n), [n + r for r in rows]) if image_first else (slice(-n, None), rows)
    torch.testing.assert_close(maps.found[0], weights[:, image][:, :, columns].sum(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_an_even_step_is_the_papers(name: str, models: dict[str, Model]) -> None:
    """Without attention it is ESD on velocities; with it, what is added falls with the map."""
    model = models[name]
    c, null = model.encode_text(["cat"]), model.encode_text([""])
    z, s, rows = latents(model), torch.tensor(0.6), model.rows_of("cat")
    with torch.no_grad():
        v_c, v_null = model.predict(z, s, c), model.predict(z, s, null)
        plain, full = (
            EraseAnything(eta=2.0, attention=weight).erase(model, model, (z, s), c, null, rows, 1)
            for weight in (0.0, 0.5)
        )
        with Maps(model, [rows], 1) as maps:
            model.predict(z, s, c)

    torch.testing.assert_close(plain, F.mse_loss(v_c, v_null - 2 * (v_c - v_null)))
    torch.testing.assert_close(full - plain, 0.5 * maps.found[0].norm(), atol=1e-6, rtol=1e-4)


def test_an_odd_step_leaves_the_synonym_for_the_irrelevant(models: dict[str, Model]) -> None:
    model = models["flux"]
    method, words = EraseAnything(tau=0.5), ["cat", "kitten", "river", "chair"]
    texts, rows = model.encode_text(words), [model.rows_of(word) for word in words]
    z, s = latents(model), torch.tensor(0.6)
    with torch.no_grad():
        loss = method.reverse(model, (z, s), texts, rows, 1)
        maps = []
        for text, own in zip(texts, rows, strict=True):
            with Maps(model, [own], 1) as found:
                model.predict(z, s, text[None])
            maps.append(found.found[0][0] / found.found[0][0].norm())
    e = [float(torch.exp(maps[0] @ other / 0.5)) for other in maps[1:]]
    assert float(loss) == pytest.approx(float(torch.log(torch.tensor(e[0] / sum(e)))), rel=1e-3)

    twins = texts[[0, 0, 2, 3]], [rows[0], rows[0], *rows[2:]]  # a synonym with the same map is the worst
    with torch.no_grad():
        assert method.reverse(model, (z, s), *twins, 1) > loss


def test_gradients_reach_every_adapter_that_the_maps_read(models: dict[str, Model]) -> None:
    edited = models["flux"].clone(only=())
    layers = add_adapters(edited, rank=2, alpha=2, targets=TARGETS, rng=Generator().manual_seed(0))
    assert {name.rpartition(".")[2] for name in layers} == set(TARGETS)
    text = edited.encode_text(["cat"])
    with Maps(edited, [edited.rows_of("cat")], 1) as maps:
        edited.predict(latents(edited), torch.tensor(0.5), text)
    maps.found[0].norm().backward()

    for name, layer in layers.items():
        gradient = layer.lora_B["default"].weight.grad
        assert (gradient is not None and bool(gradient.any())) == name.endswith("add_k_proj"), name


def test_a_unet_has_no_joint_attention() -> None:
    with pytest.raises(ValueError, match="attend together"):
        tiny_model().joint(20)
