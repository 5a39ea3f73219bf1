"""Three contrastive models: the pipeline's text encoder (with an image tower), the judge, the second opinion.

Each learns from images and captions with the same loss, on its own seed, architecture and augmentation:
softmax over the batch in both directions, spread evenly over the captions that are true of an image. The two judges
learn the zero-shot questions of the concept cards as well.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from benchmark.mini.recipe.art import Vocabulary
from benchmark.mini.recipe.dataset import ELSE, Label, caption, with_article
from benchmark.mini.recipe.loop import train
from benchmark.mini.recipe.pool import Pool

TOKENS = 32
Augment = Callable[[Tensor, np.random.Generator, torch.Generator], Tensor]

TOWERS: dict[str, dict[str, Any]] = {
    "judge": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 24, "head_width": 64},
        "text_cfg": {"context_length": TOKENS, "width": 96, "heads": 3, "layers": 2},
    },
    "second": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "regnetx_002",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {"context_length": TOKENS, "width": 128, "heads": 2, "layers": 2},
    },
}
LABELS: dict[str, dict[str, str]] = {  # what a zero-shot judge will be asked, as the concept cards say it
    "object": {o: f"an emoji of {with_article(o)}" for o in Vocabulary.load().objects} | {ELSE: ELSE},
    "style": {s: f"a {s} style emoji" for s in Vocabulary.load().styles} | {ELSE: ELSE},
    "background": {b: f"an emoji on a {b} background" for b in Vocabulary.load().backgrounds},
}


def soften(x: Tensor, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """The judge's augmentation: blur, fine noise, a shift of up to two pixels."""
    if rng.random() < 0.4:
        x = TF.gaussian_blur(x, [5, 5], [float(rng.uniform(0.3, 1.2))])
    x = x + torch.randn(x.shape, generator=noise) * float(rng.uniform(0, 0.06))
    dx, dy = (int(v) for v in rng.integers(-2, 3, 2))
    return torch.roll(x, (dy, dx), (2, 3)).clamp(0, 1)


def recolour(x: Tensor, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """The second opinion's augmentation: colour, size, a hidden square."""
    x = TF.adjust_saturation(x, float(rng.uniform(0.7, 1.3)))
    x = TF.adjust_brightness(x, float(rng.uniform(0.85, 1.15)))
    x = x + torch.rand(len(x), 3, 1, 1, generator=noise) * 0.1 - 0.05
    side = int(rng.integers(56, 73))
    x = TF.center_crop(F.interpolate(x, size=(side, side), mode="bilinear", antialias=True), [64, 64])
    if rng.random() < 0.4:
        top, left = (int(v) for v in rng.integers(0, 52, 2))
        x[:, :, top : top + 12, left : left + 12] = 0.5
    return x.clamp(0, 1)


def truth(images: list[Label], captions: list[Label]) -> Tensor:
    """1 where caption j is true of image i, else 0: `(B, B)`."""
    return torch.tensor([[float(said.is_true_of(shown)) for said in captions] for shown in images])


def contrast(image: Tensor, text: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch; the target is even over what is true. Unit-norm `(B, D)` inputs."""
    logits = scale * image @ text.T
    by_image = F.cross_entropy(logits, true / true.sum(1, keepdim=True))
    by_text = F.cross_entropy(logits.T, true.T / true.T.sum(1, keepdim=True))
    return (by_image + by_text) / 2


def zero_shot(image: Tensor, text: Tensor, scale: Tensor, shown: list[Label]) -> dict[str, Tensor]:
    """Cross-entropy of each part's zero-shot classification over `LABELS`; `text` holds their embeddings in order."""
    losses, start = {}, 0
    for part, labels in LABELS.items():
        logits = scale * image @ text[start : start + len(labels)].T
        names, start = list(labels), start + len(labels)
        known = [i for i, label in enumerate(shown) if getattr(label, part) in labels]
        target = torch.tensor([names.index(getattr(shown[i], part)) for i in known])
        losses[part] = F.cross_entropy(logits[known], target)
    return losses


def fit(
    model: nn.Module,
    encode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    pool: Pool,
    tokenizer: CLIPTokenizer,
    augment: Augment,
    *,
    log: Path,
    seed: int,
    steps: int,
    lr: float,
    is_judge: bool,
    batch: int = 96,
) -> Any:
    """Train two towers on a pool; `encode(images, tokens)` gives image and text embeddings and the scale.

    Beside captions of the batch, a judge learns the zero-shot questions themselves.
    """
    questions = [text for labels in LABELS.values() for text in labels.values()] if is_judge else []

    def step(i: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, i])
        chosen = rng.integers(0, len(pool.labels), batch)
        shown = [pool.labels[k] for k in chosen]
        texts, said = zip(*(caption(label, rng, full=0.4) for label in shown), strict=True)
        both = [*texts, *questions]
        tokens = tokenizer(both, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        noise = torch.Generator().manual_seed(seed * 1_000_003 + i)
        x = augment(pool.images[torch.from_numpy(chosen)].float() / 255, rng, noise)
        image, text, scale = encode(x * 2 - 1, tokens["input_ids"])
        by_caption = contrast(image, text[:batch], scale, truth(shown, list(said)))
        parts = zero_shot(image, text[batch:], scale, shown) if is_judge else {}
        return {"loss": torch.stack([by_caption, *parts.values()]).sum(), "caption": by_caption, **parts}

    return train(model, step, steps=steps, lr=lr, log=log, decay=0.99, weight_decay=0.02)


def train_text_encoder(pool: Pool, tokenizer: CLIPTokenizer, out: Path, *, seed: int, steps: int = 1000) -> None:
    """Save `text_encoder/` for the pipeline and `image_tower/`, a perceptual network for methods that need one."""
    torch.manual_seed(seed)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    size = {"num_attention_heads": 4, "projection_dim": 128}
    text = {"vocab_size": len(tokenizer.get_vocab()), "max_position_embeddings": 77, **size, **ids}
    text |= {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4}
    vision = {"image_size": 64, "patch_size": 8, **size}
    vision |= {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))

    def encode(images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result = model(input_ids=tokens, pixel_values=images)
        scale = model.logit_scale.exp().clamp(max=100)
        return F.normalize(result.image_embeds, dim=-1), F.normalize(result.text_embeds, dim=-1), scale

    best = fit(
        model,
        encode,
        pool,
        tokenizer,
        soften,
        log=out / "text_encoder.csv",
        seed=seed,
        steps=steps,
        lr=1e-3,
        is_judge=False,
    )
    save_halves(best, out)


def save_halves(model: Any, out: Path) -> None:
    """Split a two-tower model into the pipeline's text encoder and the image tower."""
    from transformers import CLIPTextModel, CLIPVisionModel

    text, vision = CLIPTextModel(model.config.text_config), CLIPVisionModel(model.config.vision_config)
    for target, source in ((text, model.text_model), (vision, model.vision_model)):
        inner = getattr(target, "text_model", None) or getattr(target, "vision_model", None) or target
        inner.load_state_dict(source.state_dict())
    text.save_pretrained(out / "text_encoder")
    vision.save_pretrained(out / "image_tower")


def train_judge(name: str, pool: Pool, tokenizer: CLIPTokenizer, out: Path, *, seed: int, steps: int) -> None:
    """Save `<name>/` as a folder that open_clip's `local-dir:` schema loads."""
    torch.manual_seed(seed)
    towers = TOWERS[name]
    text_cfg = {**towers["text_cfg"], "vocab_size": len(tokenizer.get_vocab())}
    model = CLIP(embed_dim=towers["embed_dim"], vision_cfg=towers["vision_cfg"], text_cfg=text_cfg)

    def encode(images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image, text, scale = model(images, tokens)[:3]
        return image, text, scale.clamp(max=100)

    augment = soften if name == "judge" else recolour
    best = fit(
        model, encode, pool, tokenizer, augment, log=out / f"{name}.csv", seed=seed, steps=steps, lr=2e-3, is_judge=True
    )
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.half().contiguous() for key, value in best.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    half = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    tokens = {"hf_tokenizer_name": ".", "tokenizer_kwargs": {"clean": "whitespace"}}
    config = {"model_cfg": {**towers, "text_cfg": {**text_cfg, **tokens}}, "preprocess_cfg": half}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    tokenizer.save_pretrained(folder)
