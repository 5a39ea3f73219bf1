"""The equations that every method shares, and the sampler's independence of batches."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from benchmark.diffusion import Model, batches, denoising_loss, difference, sample
from benchmark.model.generate import generate, start_noise
from benchmark.types import Delta, Prompt
from tests.pipelines import stock

PROMPTS = [Prompt(text=text, split="concept") for text in ("a cat", "dog", "key", "car")]


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def draw(model: Model, prompts: list[Prompt], batch: int) -> torch.Tensor:
    settings = {"images": 2, "steps": 3, "guidance": 2.0, "stream": ""}
    return generate(model, prompts, **settings, batch=batch, report=silent).images


def test_guidance_of_one_is_the_conditional_prediction(model: Model) -> None:
    z, t = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor(7)
    text, null = model.encode_text(["cat", "dog"]), model.encode_text(["", ""])

    torch.testing.assert_close(model.guided(z, t, text, null, 1.0), model.predict(z, t, text))
    torch.testing.assert_close(model.guided(z, t, text, null, 0.0), model.predict(z, t, null), atol=1e-5, rtol=1e-4)


def test_denoising_loss_is_the_mean_squared_error_of_the_noise(model: Model) -> None:
    """Worked by hand from the same generator."""
    z_0 = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    text = model.encode_text(["a", "b", "c"])
    g = torch.Generator().manual_seed(2)
    t = torch.randint(1000, (3,), generator=g)
    eps = torch.randn(z_0.shape, generator=g)
    ab = model.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    expected = F.mse_loss(model.predict(ab.sqrt() * z_0 + (1 - ab).sqrt() * eps, t, text), eps)

    torch.testing.assert_close(denoising_loss(model, z_0, text, rng=torch.Generator().manual_seed(2)), expected)


def test_noising_agrees_with_diffusers(model: Model) -> None:
    g = torch.Generator().manual_seed(3)
    z_0, eps = torch.randn(2, 4, 4, 4, generator=g), torch.randn(2, 4, 4, 4, generator=g)
    t = torch.tensor([10, 900])

    torch.testing.assert_close(model.noised(z_0, eps, t), model.scheduler.add_noise(z_0, eps, t))


def test_sampling_agrees_with_the_diffusers_pipeline(model: Model) -> None:
    """Same start, same prompt, same steps: our images are the library's."""
    pipe = stock(model)
    z_T = start_noise([5, 6], model.latent_shape)
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 8, "width": 8, "output_type": "pt"}
    theirs = pipe(["a cat", "dog"], latents=z_T, **settings).images
    text, null = model.encode_text(["a cat", "dog"]), model.encode_text(["", ""])

    ours = model.decode(sample(model, z_T, text, null, steps=4, guidance=3.0)).detach()

    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_images_do_not_depend_on_batch_or_order(model: Model) -> None:
    """Beyond one step of eight bits, which is floating-point rounding."""
    whole, single = draw(model, PROMPTS, 8), draw(model, PROMPTS, 1)
    turned = draw(model, PROMPTS[::-1], 3).reshape(4, 2, 3, 8, 8).flip(0).flatten(0, 1)

    assert (whole.int() - single.int()).abs().max() <= 1
    assert (whole.int() - turned.int()).abs().max() <= 1


def test_images_of_one_prompt_differ(model: Model) -> None:
    images = draw(model, PROMPTS[:1], 2)

    assert not torch.equal(images[0], images[1])


def test_training_images_share_no_seed_with_evaluation(model: Model) -> None:
    settings = {"images": 3, "steps": 1, "guidance": 1.0, "batch": 8, "report": silent}
    evaluation = generate(model, PROMPTS, stream="", **settings).seeds
    training = generate(model, PROMPTS, stream="train-attacker", **settings).seeds

    assert not set(evaluation) & set(training)


def test_a_delta_undoes_itself(model: Model) -> None:
    changed = model.clone()
    with torch.no_grad():
        for parameter in changed.unet.parameters():
            parameter.add_(0.5)
    delta = difference(changed, model)

    back = changed.with_delta(Delta(dense={name: -t for name, t in delta.dense.items()}))

    for ours, theirs in zip(back.unet.parameters(), model.unet.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_a_delta_of_another_model_is_refused(model: Model) -> None:
    import pytest

    name = "unet.conv_in.weight"
    with pytest.raises(ValueError, match="this model lacks"):
        model.with_delta(Delta(dense={"unet.no_such.weight": torch.zeros(1)}))
    with pytest.raises(ValueError, match="expected a delta of shape"):
        model.with_delta(Delta(dense={name: torch.zeros(2)}))


def test_every_pass_is_counted(model: Model) -> None:
    meter, before = model.meter, (model.meter.unet_forward, model.meter.unet_backward)
    trained = model.clone()
    trained.unet.requires_grad_(True)
    text = model.encode_text(["a", "b", "c"])

    denoising_loss(trained, torch.zeros(3, *model.latent_shape), text, rng=torch.Generator()).backward()

    assert (meter.unet_forward - before[0], meter.unet_backward - before[1]) == (3, 3)


def test_batches_visit_every_example_once_an_epoch() -> None:
    order = batches(5, 2, rng=torch.Generator().manual_seed(0))

    seen = torch.cat([next(order) for _ in range(5)])

    assert sorted(seen[:5].tolist()) == sorted(seen[5:].tolist()) == [0, 1, 2, 3, 4]


def test_encoding_words_is_encoding_text(model: Model) -> None:
    texts = ["a cat", "dog"]

    torch.testing.assert_close(model.encode_words(model.words(model.ids(texts))), model.encode_text(texts))


def test_gradients_reach_the_words(model: Model) -> None:
    words = model.words(model.ids(["a cat"])).requires_grad_()

    model.encode_words(words).sum().backward()

    assert words.grad is not None
    assert bool(words.grad.any())


def test_a_new_word_is_its_vector(model: Model) -> None:
    """A copied row makes the new word a synonym; the model itself stays as it was."""
    cat = model.words(model.ids(["a"]))[0, 1]
    size = len(model.tokenizer)

    taught = model.with_tokens({"<new>": cat})

    torch.testing.assert_close(taught.encode_text(["b <new> c"]), model.encode_text(["b a c"]))
    assert len(model.tokenizer) == size
    for word in ("<new>", "a"):
        with pytest.raises(ValueError, match="expected a word that the tokenizer lacks"):
            taught.with_tokens({word: cat})


def test_mixed_precision_predicts_float32_and_nearly_the_same(model: Model) -> None:
    """And gradients arrive in float32, so that a defense or an attack trains as before."""
    mixed = replace(model.clone(), precision="bfloat16")
    mixed.unet.requires_grad_(True)
    z = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    t, text = torch.tensor([10, 500]), model.encode_text(["cat", "dog"])

    full, half = model.predict(z, t, text), mixed.predict(z, t, text)
    half.square().mean().backward()

    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert float(((full - half).norm() / full.norm()).detach()) < 0.05
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in mixed.unet.parameters())
