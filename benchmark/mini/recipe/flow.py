"""The flow model: a small joint transformer that predicts velocities, in Stable Diffusion 3's format.

Only the transformer is new. Its latents are those of the U-Net's autoencoder, its texts those of the same text encoder,
so that one set of judges, cards and tokens serves both embedded models. Stable Diffusion 3 reads two CLIPs: the second
one is the first half of the first. Neither has a projection, so the pooled text is the last state itself.
"""

from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from benchmark.mini.recipe.dataset import Art, caption_texts, every_label
from benchmark.mini.recipe.denoiser import CAPTIONS_EACH, encode_images
from benchmark.mini.recipe.loop import train
from benchmark.mini.recipe.readers import reader
from benchmark.model.families import sd3

BATCH, STEPS, LR = 32, 10_000, 1.5e-3  # transformers learn slower than U-Nets: many small steps, an hour on two cores
POSES = 32
WIDTH, HEADS, BLOCKS = 96, 3, 6
WORDS = 32  # tokens that a text has at most: a caption has about 15, a searched prefix up to 16 more


def new_transformer(text: int, width: int = WIDTH, heads: int = HEADS, blocks: int = BLOCKS) -> SD3Transformer2DModel:
    """The transformer for two text encoders of `text` numbers in all; 2 x 2 latents make a token."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=blocks,
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        joint_attention_dim=text,
        caption_projection_dim=width,
        pooled_projection_dim=text,
        qk_norm="rms_norm",
        pos_embed_max_size=8,  # as many as there are: the table is saved
    )


def new_pipeline(weights: Path) -> StableDiffusion3Pipeline:
    """A pipeline with an untrained transformer, on the parts of the other embedded model in `weights`."""
    vae = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32)
    vae.register_to_config(shift_factor=0.0)
    encoder = CLIPTextModel.from_pretrained(weights / "text_encoder", torch_dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(weights / "tokenizer", model_max_length=WORDS)
    layers = int(encoder.config.num_hidden_layers)
    return StableDiffusion3Pipeline(
        transformer=new_transformer(2 * int(encoder.config.hidden_size)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae.eval(),
        text_encoder=reader(encoder, layers),
        tokenizer=tokenizer,
        text_encoder_2=reader(encoder, layers // 2),
        tokenizer_2=deepcopy(tokenizer),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def train_flow(
    art: Art, weights: Path, out: Path, *, seed: int, steps: int = STEPS, poses: int = POSES, device: str = "cpu"
) -> StableDiffusion3Pipeline:
    """Fit the velocity of `poses` drawings of every combination; a tenth of the captions are empty, for guidance.

    v = eps - z_0 at z_s = (1 - s) z_0 + s eps, with s logit-normal, as Stable Diffusion 3 is trained.
    """
    torch.manual_seed(seed)
    pipe = new_pipeline(weights)
    model = sd3.model(pipe, pipe.scheduler)
    combinations = every_label()
    latents = encode_images(art, pipe.vae.to(device), combinations * poses, seed=seed)
    captions = caption_texts(combinations, CAPTIONS_EACH, seed=seed)
    with torch.no_grad():
        texts = torch.cat([model.encode_text(captions[at : at + 256]) for at in range(0, len(captions), 256)])
    latents, texts, transformer = latents.to(device), texts.to(device), pipe.transformer.to(device)

    def step(i: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed * 1_000_003 + i)
        chosen = torch.randint(len(latents), (BATCH,), generator=g)
        variant = torch.randint(CAPTIONS_EACH, (BATCH,), generator=g)
        empty = torch.rand(BATCH, generator=g) < 0.1
        said = torch.where(empty, len(texts) - 1, (chosen % len(combinations)) * CAPTIONS_EACH + variant)
        s = model.times(BATCH, rng=g)
        z_0, eps = latents[chosen.to(device)], torch.randn(BATCH, *latents.shape[1:], generator=g).to(device)
        v = model.velocity(model.noised(z_0, eps, s), s.to(device), texts[said.to(device)])
        return {"loss": F.mse_loss(v, model.target(z_0, eps, s))}

    found: nn.Module = train(transformer, step, steps=steps, lr=LR, log=out / "flow.csv", decay=0.9985)
    pipe.transformer = found
    pipe.to("cpu")
    pipe.save_pretrained(out / "flow")
    return pipe
