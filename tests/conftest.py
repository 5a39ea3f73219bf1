"""A tiny random Stable Diffusion pipeline, made in code: every unit test runs on it in seconds."""

import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmark.diffusion import Model
from benchmark.models import load
from benchmark.types import ELSE, Concept, Examples, Prompt


def tiny_tokenizer() -> CLIPTokenizer:
    letters = list(string.ascii_lowercase)
    entries = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={e: i for i, e in enumerate(entries)}, merges=[], model_max_length=12)


def tiny_pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=8,
    )
    tokenizer = tiny_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(tokenizer.get_vocab()), max_position_embeddings=12, **size, **ends)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDPMScheduler(**schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, saved."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(tiny_folder: Path) -> Model:
    return load(tiny_folder)


@pytest.fixture
def model(loaded: Model) -> Iterator[Model]:
    """The tiny model; a test that changes it fails."""
    before = {n: p.clone() for part in loaded.parts.values() for n, p in part.named_parameters()}
    yield loaded
    after = {n: p for part in loaded.parts.values() for n, p in part.named_parameters()}
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.fixture
def concept() -> Concept:
    splits = ("concept", "retained", "safe", "attacker", "defender", "prior", "benign")
    label = {"concept": "cat", "retained": "dog"}
    prompts = [Prompt(text=f"{s[:2]} {n}", split=s, label=label.get(s)) for s in splits for n in ("a", "b")]
    labels = {"cat": "a cat", "dog": "a dog", ELSE: ELSE}
    return Concept(name="cat", phrase="cat", kind="object", prompts=tuple(prompts), labels=labels)


@pytest.fixture
def examples() -> Examples:
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Examples(images=images, captions=("a cat", "a cat", "one", "two"))
