"""The guards beside their papers' equations and other implementations."""

from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_safe import StableDiffusionPipelineSafe
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor

from benchmark.data import load_concept
from benchmark.diffusion import Model, sample
from benchmark.guard import Guard, guarded
from benchmark.kit.conformance import check_defense
from benchmark.model.towers import load_tower
from benchmark.types import Concept
from defenses.base import GuardDefense
from defenses.negative_prompt import NegativePrompt
from defenses.safety_checker import Checker, Known, SafetyChecker, of
from defenses.safree import SAFREE, Filter, end_of, masked, pooled, projection, triggers
from defenses.sld import SLD, Safety
from defenses.trasce import Steering, TraSCE
from tests.pipelines import stock

METHODS: dict[str, GuardDefense] = {
    "negative_prompt": NegativePrompt(),
    "sld": SLD(**SLD.presets["max"]),  # type: ignore[arg-type]
    "trasce": TraSCE(),
    "safree": SAFREE(margin=-0.9),  # every token triggers
    "safree-text-only": SAFREE(margin=-0.9, negative=False),
    "safety_checker": SafetyChecker(described=True, tower="mini:judge", threshold=0.1),
}
FILTER = Filter(phrases=("cat",), margin=0.01, slope=3.5, t_0=5.5, validated=True, negative=True)


def noise(model: Model, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(seed))


def drawn(model: Model, guard: Guard | None, texts: list[str], *, steps: int, w: float) -> Tensor:
    behind = guarded(model, guard, w) if guard else model
    text, null = behind.encode_text(texts), behind.encode_text([""] * len(texts))
    return sample(behind, noise(model, len(texts)), text, null, steps=steps, guidance=w)


@pytest.mark.parametrize("name", METHODS)
def test_a_guard_keeps_the_contract(name: str) -> None:
    method = METHODS[name]

    check_defense(type(method), {k: v for k, v in vars(method).items() if v != getattr(type(method)(), k)})


@pytest.mark.parametrize("name", METHODS)
def test_a_guard_says_what_it_costs(name: str, model: Model, concept: Concept) -> None:
    method, z = METHODS[name], noise(model)
    behind = guarded(model, method.guard(concept), 3.0)
    text, null = behind.encode_text(["cat", "dog"]), behind.encode_text(["", ""])
    for scale in (1.0, 3.0):
        course = behind.course(text, null, scale)
        before = (model.meter.unet_forward, model.meter.unet_backward)
        with torch.no_grad():
            course(z, torch.tensor(300), torch.tensor(0.5))
        spent = model.meter.unet_forward - before[0] + 2 * (model.meter.unet_backward - before[1])
        assert spent == 2 * method.guided_passes(scale), scale


@pytest.mark.parametrize(
    "preset", ["medium", *(pytest.param(p, marks=pytest.mark.slow) for p in ("weak", "strong", "max"))]
)
def test_sld_draws_what_the_pipeline_of_diffusers_draws(model: Model, preset: str) -> None:
    method = SLD(**SLD.presets[preset], words="a cat")  # type: ignore[arg-type]
    pipe = stock(model, StableDiffusionPipelineSafe)
    pipe.safety_concept = "a cat"
    theirs = pipe(
        ["a dog", "a key"],
        latents=noise(model),
        num_inference_steps=50,
        guidance_scale=5.0,
        sld_guidance_scale=method.s_s,
        sld_warmup_steps=method.delta,
        sld_threshold=method.lam,
        sld_momentum_scale=method.s_m,
        sld_mom_beta=method.beta_m,
        output_type="np",
    ).images

    guard = Safety(text="a cat", **{n: getattr(method, n) for n in ("delta", "s_s", "lam", "s_m", "beta_m")})
    ours = drawn(model, guard, ["a dog", "a key"], steps=50, w=5.0)

    images = model.decode(ours).permute(0, 2, 3, 1)
    torch.testing.assert_close(images, torch.from_numpy(theirs), atol=1e-4, rtol=1e-4)
    assert (ours - drawn(model, None, ["a dog", "a key"], steps=50, w=5.0)).abs().max() > 1e-2


def test_sld_without_strength_or_guidance_does_nothing(model: Model) -> None:
    weak = Safety(text="a cat", delta=0, s_s=1.0, lam=1.0, s_m=0.5, beta_m=0.7)

    assert torch.equal(drawn(model, weak, ["a dog"], steps=3, w=3.0), drawn(model, None, ["a dog"], steps=3, w=3.0))
    strong = replace(weak, s_s=5000.0)
    assert torch.equal(drawn(model, strong, ["a dog"], steps=3, w=1.0), drawn(model, None, ["a dog"], steps=3, w=1.0))


def test_slds_momentum_by_hand_over_three_steps(model: Model) -> None:
    guard = Safety(text="a cat", delta=25, s_s=2.0, lam=9.0, s_m=0.5, beta_m=0.7)
    text, null, s = (model.encode_text([t]) for t in ("a dog", "", "a cat"))
    course, nu = guarded(model, guard, 4.0).course(text, null, 4.0), torch.zeros(1, *model.latent_shape)
    for k, t in enumerate((900, 500, 100)):
        z = noise(model, 1, seed=k)
        u, p, safe = (model.predict(z, torch.tensor(t), c) for c in (null, text, s))
        q = (safe - u) * ((p - safe).abs() * 2).clamp(max=1) + 0.5 * nu
        nu = 0.7 * nu + (1 - 0.7) * q
        wanted = u + 4 * (p - u - (q if k >= 1 else 0))

        torch.testing.assert_close(course(z, torch.tensor(t), torch.tensor(k / 2))[1], wanted, atol=1e-4, rtol=1e-4)


def test_trasces_composition_moves_nothing_without_gamma(model: Model) -> None:
    guard = Steering(text="a cat", gamma=0.0, sigma=1.0, eta=1.0)
    text, null, n = (model.encode_text([t]) for t in ("a dog", "", "a cat"))
    z, t = noise(model, 1), torch.tensor(300)

    moved, eps = guarded(model, guard, 4.0).course(text, null, 4.0)(z, t, torch.tensor(0.0))

    u, p, c = (model.predict(z, t, each) for each in (null, text, n))
    assert torch.equal(moved, z)
    torch.testing.assert_close(eps, u + 4 * (p - c), atol=1e-5, rtol=1e-4)


def test_trasce_moves_along_the_gradient_of_its_loss(model: Model) -> None:
    """Finite differences in float64, over the numbers that matter most."""
    double = model.clone()
    for part in double.parts.values():
        part.double()
    double = double.frozen()
    guard = Steering(text="a cat", gamma=1.5, sigma=40.0, eta=0.5)
    text, null, n = (double.encode_text([t]) for t in ("a dog", "", "a cat"))
    z, t = noise(model, 1).double(), torch.tensor(300)

    def loss(z: Tensor) -> Tensor:
        gap = (double.predict(z, t, text) - double.predict(z, t, n)).flatten().norm()
        return -1.5 * torch.exp(-gap / guard.width(z))

    moved, _ = guarded(double, guard, 4.0).course(text, null, 4.0)(z, t, torch.tensor(0.0))
    gradient = ((z - moved) / 0.5).flatten()
    for i in gradient.abs().topk(5).indices.tolist():
        step = torch.zeros_like(z).flatten()
        step[i] = 1e-5
        both = loss(z + step.view_as(z)) - loss(z - step.view_as(z))
        torch.testing.assert_close(gradient[i], both / 2e-5, atol=1e-9, rtol=1e-4)


def test_where_prompt_and_concept_are_one_trasce_falls_back_to_the_empty_text(model: Model) -> None:
    guard = Steering(text="a cat", gamma=1.0, sigma=1.0, eta=1.0)
    text, null = model.encode_text(["a cat"]), model.encode_text([""])
    z, t = noise(model, 1), torch.tensor(300)

    _, eps = guarded(model, guard, 4.0).course(text, null, 4.0)(z, t, torch.tensor(0.0))

    torch.testing.assert_close(eps, model.predict(z, t, null), atol=1e-4, rtol=1e-4)


def test_safrees_projections_are_projections() -> None:
    X = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    X = torch.cat([X, X[:, :1]], dim=1)  # dependent columns
    P = projection(X)

    torch.testing.assert_close(P @ P, P)
    torch.testing.assert_close(P, P.T)
    torch.testing.assert_close(P @ X.double(), X.double())
    assert P.trace().item() == pytest.approx(3)


def test_safree_triggers_by_the_mean_of_the_others() -> None:
    d = torch.tensor([1.0, 1.0, 1.3, 1.0])

    assert triggers(d, 0.01).tolist() == [False, False, True, False]
    assert triggers(d, 0.4).tolist() == [False] * 4
    assert triggers(torch.tensor([5.0]), 0.01).tolist() == [False]


def test_safree_masks_one_token_at_a_time(model: Model) -> None:
    words = model.words(model.ids(["a cat"]))[0]
    end = end_of(model, words)
    ids = model.ids(["a cat"])[0]
    assert end == ids.tolist().index(model.tokenizer.eos_token_id)

    p = masked(model, words, end)

    for i in range(1, end):
        other = ids.clone()
        other[i] = 0
        wanted = model.encode_words(model.words(other[None]))[0, end]
        torch.testing.assert_close(p[i - 1], wanted)


def test_safree_turns_the_rows_of_triggers_alone(model: Model) -> None:
    text = ["a cat on a mat"]
    e, L = model.encode_text(text)[0], model.text_shape[0]
    plain = guarded(model, replace(FILTER, margin=1e9), 3.0).encode_text(text)[0]
    every = guarded(model, replace(FILTER, margin=-1.0), 3.0).encode_text(text)[0]
    end = end_of(model, model.words(model.ids(text))[0])

    assert torch.equal(plain[:L], e) and torch.equal(plain[L : 2 * L], e)
    assert torch.equal(every[L : 2 * L], e)
    changed = (every[:L] != e).any(dim=-1).nonzero().flatten().tolist()
    assert changed == list(range(1, end))
    words = model.words(model.ids(text))[0]
    M = (torch.eye(len(e[0])).double() - projection(pooled(model, ["cat"]).T)) @ projection(masked(model, words, end).T)
    torch.testing.assert_close(every[1:end], (e[1:end].double() @ M.T).float(), atol=1e-5, rtol=1e-4)


def test_the_more_a_text_is_turned_the_longer_it_is_filtered(model: Model) -> None:
    b = torch.linspace(0, 1, 50)
    last = torch.round(10 * torch.sigmoid(2 * 3.5 * (10 * b - 5.5)))

    assert bool((last.diff() >= 0).all()) and last[0] == 0 and last[-1] == 10
    text = guarded(model, FILTER, 3.0).encode_text(["a cat on a mat"])
    assert 0 <= float(text[0, -1, 0]) <= 10
    assert float(guarded(model, replace(FILTER, validated=False), 3.0).encode_text(["a cat"])[0, -1, 0]) == 50


def test_safree_reads_the_filtered_text_first_and_the_plain_one_then(model: Model) -> None:
    guard = replace(FILTER, margin=-1.0, negative=False)
    behind = guarded(model, guard, 3.0)
    text, null, L = behind.encode_text(["a cat on a mat"]), behind.encode_text([""]), model.text_shape[0]
    text[:, -1] = 10.0
    z, t = noise(model, 1), torch.tensor(300)
    course, empty = behind.course(text, null, 3.0), model.encode_text([""])

    early, late = (course(z, t, torch.tensor(done))[1] for done in (0.2, 0.22))

    torch.testing.assert_close(early, model.guided(z, t, text[:, :L], empty, 3.0))
    torch.testing.assert_close(late, model.guided(z, t, text[:, L : 2 * L], empty, 3.0))


def test_safrees_negative_prompt_can_be_left_out(model: Model) -> None:
    z, t = noise(model, 1), torch.tensor(300)
    found = {}
    for negative in (True, False):
        behind = guarded(model, replace(FILTER, negative=negative), 3.0)
        text, null = behind.encode_text(["a dog on a mat"]), behind.encode_text([""])
        found[negative] = behind.course(text, null, 3.0)(z, t, torch.tensor(0.9))[1]
    dog, cat, empty = (model.encode_text([t]) for t in ("a dog on a mat", "cat", ""))

    torch.testing.assert_close(found[True], model.guided(z, t, dog, cat, 3.0))
    torch.testing.assert_close(found[False], model.guided(z, t, dog, empty, 3.0))


def test_safree_refuses_a_model_with_more_than_one_text_encoder(model: Model) -> None:
    class Two(type(model)):  # type: ignore[misc]
        @property
        def readers(self) -> tuple[tuple[str, str], ...]:
            return (("tokenizer", "text_encoder"),) * 2

    two = Two(**{name: getattr(model, name) for name in [f.name for f in fields(model)]})
    with pytest.raises(ValueError, match="expected a model with one text encoder"):
        guarded(two, FILTER, 3.0).encode_text(["a cat"])


@pytest.fixture(scope="module")
def checker() -> StableDiffusionSafetyChecker:
    """A published checker of 4 numbers an embedding, with random concepts, some of which special care lifts."""
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(projection_dim=4, vision_config={**vision, "image_size": 8, "patch_size": 4})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = StableDiffusionSafetyChecker(config).eval().requires_grad_(False)
        net.vision_model.post_layernorm.bias.normal_()
        net.visual_projection.weight.normal_()
        for name in ("concept_embeds", "special_care_embeds"):
            getattr(net, name).normal_()
        net.concept_embeds_weights.uniform_(0.9, 1.0)
        net.special_care_embeds_weights.uniform_(0.3, 0.9)
    return net


def test_a_published_checker_blackens_what_that_of_diffusers_blackens(
    checker: StableDiffusionSafetyChecker, tmp_path: Path
) -> None:
    checker.save_pretrained(tmp_path)
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    seen = Checker(tower=str(tmp_path), pretrained="", texts=(), threshold=0.0).finish(images)

    pixels = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})(
        [Image.fromarray((x.permute(1, 2, 0) * 255).byte().numpy()) for x in images], return_tensors="pt"
    ).pixel_values
    theirs, is_seen = checker(clip_input=pixels, images=images.clone())

    assert 0 < sum(is_seen) < 64
    assert torch.equal(seen, theirs)


def test_a_checker_decides_as_that_of_diffusers_at_its_thresholds(checker: StableDiffusionSafetyChecker) -> None:
    """Special care lifts by 0.01, its own later ones, too; what rounds to nothing is not seen."""
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(4000, 4, generator=g), dim=-1)
    names = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
    known = Known(lambda images: images, *(getattr(checker, name).detach() for name in names))

    class AsGiven(torch.nn.Module):
        def forward(self, embeddings: Tensor) -> tuple[None, Tensor]:
            return None, embeddings

    theirs = deepcopy(checker)
    theirs.vision_model, theirs.visual_projection = AsGiven(), torch.nn.Identity()
    _, is_seen = theirs(clip_input=x, images=torch.zeros(len(x), 1))

    assert known.flags(x).tolist() == is_seen
    lone = Known(known.embed, known.c, known.th, known.k[:0], known.tk[:0])
    assert int(lone.flags(x).sum()) < sum(is_seen) < 4000
    exact = Known(known.embed, x[:1], torch.tensor([1 - 4e-4]), x[:0], torch.zeros(0))
    assert not exact.flags(x[:1]) and exact.flags(x[:1] * 1.0003)


def test_a_described_concept_is_black_where_its_cosine_is_above_the_threshold() -> None:
    tower, concept = load_tower("mini:judge", ""), load_concept("cat")
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    cosines = (tower.embed_images(images) @ tower.embed_texts(["an emoji of a cat"]).T)[:, 0]
    between = float(cosines.sort().values[2:4].mean())

    method = SafetyChecker(described=True, tower="mini:judge", threshold=between)
    seen = method.guard(concept).finish(images)

    away = (cosines - between).abs() > 1e-3  # what is nearer rounds to nothing
    assert away.sum() >= 4
    assert torch.equal((seen.amax(dim=(1, 2, 3)) == 0)[away], (cosines > between)[away])


def test_a_missing_checker_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"expected config\.json"):
        of("nowhere/at/all")
