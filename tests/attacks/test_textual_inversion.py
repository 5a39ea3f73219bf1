"""Textual inversion is the published script's, moves one row of the table, and is what the ecosystem loads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Generator, Tensor
from torch.nn import functional as F

from attacks.concept_inversion import ConceptInversion
from attacks.textual_inversion import TextualInversion
from attacks.words import first_vector, learn_word
from benchmark.diffusion import Model
from benchmark.store.artifacts import load_snapshot, save_snapshot
from benchmark.types import Concept, Examples, Snapshot

TOKEN = "<concept>"


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def invert(
    model: Model,
    concept: Concept,
    examples: Examples,
    *,
    steps: int = 3,
    cls: type = TextualInversion,
    **fields: object,
) -> Snapshot:
    method, rng = cls(**{"lr": 0.05, "batch": 2} | fields), Generator().manual_seed(0)
    *_, last = method.finetune(model, model, concept, {"concept": examples}, budgets=[steps], rng=rng, report=silent)
    return last


def rows(model: Model) -> Tensor:
    """The table of word vectors."""
    return model.text_encoder.get_input_embeddings().weight


def test_one_row_moves_and_all_others_stay(model: Model, concept: Concept, examples: Examples) -> None:
    snapshot = invert(model, concept, examples)

    attacked = model.with_tokens(snapshot.tokens)

    assert snapshot.delta.is_zero
    assert list(snapshot.tokens) == [TOKEN]
    assert len(rows(attacked)) == len(rows(model)) + 1
    assert torch.equal(rows(attacked)[:-1], rows(model))
    assert torch.equal(rows(attacked)[-1], snapshot.tokens[TOKEN])
    assert not torch.equal(snapshot.tokens[TOKEN], first_vector(model, ""))
    for part, module in model.parts.items():
        theirs = dict(attacked.parts[part].named_parameters())
        table = "embeddings.token_embedding.weight"
        assert all(n.endswith(table) or torch.equal(p, theirs[n]) for n, p in module.named_parameters())
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_it_is_the_published_script(model: Model, concept: Concept, examples: Examples) -> None:
    """The script's way, in full: train the whole table by AdamW and put all other rows back after each step."""
    ours = invert(model, concept, examples, steps=4, batch=4)

    taught = model.with_tokens({TOKEN: first_vector(model, "")})
    table, before = rows(taught).requires_grad_(True), rows(taught).detach().clone()
    optimizer = torch.optim.AdamW([table], lr=0.05, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    texts, rng = [f"a {TOKEN}", f"a {TOKEN}", f"{TOKEN}, one", f"{TOKEN}, two"], Generator().manual_seed(0)
    mean, std = model.posterior(examples.images.float() / 255)
    for _ in range(4):
        chosen = torch.randperm(4, generator=rng)
        z_0 = mean[chosen] + std[chosen] * torch.randn(mean.shape, generator=rng)
        t = torch.randint(1000, (4,), generator=rng)
        eps = torch.randn(mean.shape, generator=rng)
        c = taught.encode_text([texts[i] for i in chosen])
        loss = F.mse_loss(taught.unet(taught.noised(z_0, eps, t), t, encoder_hidden_states=c).sample, eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            table[:-1] = before[:-1]

    torch.testing.assert_close(ours.tokens[TOKEN], table[-1].detach(), atol=1e-5, rtol=1e-4)
    assert (table[-1] - before[-1]).abs().min() > 1e-3


def test_load_textual_inversion_takes_it(
    model: Model, tiny_folder: Path, concept: Concept, examples: Examples, tmp_path: Path
) -> None:
    """diffusers encodes a prompt with the word as our attacked model does, and it survives our own reader."""
    folder = tmp_path / "step-000003"
    save_snapshot(folder, invert(model, concept, examples))
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None, local_files_only=True)

    pipe.load_textual_inversion(folder, weight_name="learned_embeds.safetensors")

    prompt = TextualInversion().reword("a cat, one", concept)
    theirs, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    ours = model.with_tokens(load_snapshot(folder).tokens).encode_text([prompt])
    assert prompt == f"a {TOKEN}, one"
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert not torch.equal(ours, model.encode_text(["a cat, one"]))


@pytest.mark.parametrize("cls", [TextualInversion, ConceptInversion])
def test_the_word_starts_where_it_is_told(cls: type, model: Model, concept: Concept, examples: Examples) -> None:
    """At rate 0 the first vector stays: of `init`, else of the subject, else the mean of the table."""
    table = {word: rows(model)[model.tokenizer.convert_tokens_to_ids(f"{word}</w>")] for word in "abc"}
    subject = replace(concept, subject="c")

    told = invert(model, subject, examples, cls=cls, lr=0.0, init="a b").tokens[TOKEN]
    from_card = invert(model, subject, examples, cls=cls, lr=0.0).tokens[TOKEN]
    neither = invert(model, concept, examples, cls=cls, lr=0.0).tokens[TOKEN]

    torch.testing.assert_close(told, (table["a"] + table["b"]) / 2)
    torch.testing.assert_close(from_card, table["c"])
    torch.testing.assert_close(neither, rows(model).mean(0))


def test_the_rates_are_the_scripts_scaled_by_their_batches() -> None:
    plain, theirs = TextualInversion(), ConceptInversion()

    assert plain.lr == pytest.approx(5e-4 * plain.batch)
    assert theirs.lr == pytest.approx(5e-3 * theirs.batch)
    assert TextualInversion(**TextualInversion.presets["imma"]).lr == 5e-4


def test_concept_inversion_inverts_the_defended_model(model: Model, concept: Concept, examples: Examples) -> None:
    """The same mechanism at another rate; another model gives another word."""
    defended = model.clone().frozen()
    for parameter in defended.unet.parameters():
        parameter.data.mul_(1.1)

    word = invert(model, concept, examples, cls=ConceptInversion).tokens[TOKEN]

    assert torch.equal(word, invert(model, concept, examples).tokens[TOKEN])
    assert not torch.equal(word, invert(defended, concept, examples, cls=ConceptInversion).tokens[TOKEN])


@pytest.mark.parametrize("word", ["a", "a</w>", "<|endoftext|>"])
def test_a_word_that_is_known_is_refused(word: str, model: Model, concept: Concept, examples: Examples) -> None:
    """Its row is somebody else's."""
    with pytest.raises(ValueError, match="expected a word that the tokenizer lacks, got"):
        invert(model, concept, examples, token=word)


def test_captions_without_room_are_refused(model: Model, concept: Concept, examples: Examples) -> None:
    long = replace(examples, captions=("one two three four cat",) * 4)

    with pytest.raises(ValueError, match="expected '<concept>' among the first 12 tokens, got none"):
        invert(model, concept, long)


def test_a_caption_that_is_cut_off_teaches_nothing(model: Model, concept: Concept, examples: Examples) -> None:
    """Its gradient is zero; the batch goes on."""
    mixed = replace(examples, captions=("one two three four cat",) * 3 + ("a cat",))
    start = first_vector(model, "")

    def words(steps: int) -> list[Tensor]:
        pauses = learn_word(
            model,
            concept,
            mixed,
            token=TOKEN,
            init="",
            lr=0.05,
            batch=1,
            budgets=range(1, steps + 1),
            rng=Generator().manual_seed(0),
            report=silent,
        )
        return [snapshot.tokens[TOKEN] for snapshot in pauses]

    order = torch.randperm(4, generator=Generator().manual_seed(0)).tolist()
    at = order.index(3)  # until then nothing but weight decay moves the word
    for k, word in enumerate(words(4)[:at], start=1):
        torch.testing.assert_close(word, start * (1 - 0.05 * 1e-2) ** k)
    assert (words(4)[at] - start).abs().max() > 0.01
    assert at > 0
