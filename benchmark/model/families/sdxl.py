"""Stable Diffusion XL: two text encoders side by side, a pooled embedding, and the size of the image as a condition.

    h(c) = [h_1(c), h_2(c)]         penultimate hidden states of both encoders, (B, L, D_1 + D_2)
    p(c)                            projected hidden state of the second encoder at the end of the text, (B, P)
    eps_theta(z_t, t, h(c), p(c), s),   s = (height, width, 0, 0, height, width)

A text is [h; p] as one tensor `(B, L + r, D)`: p fills the last r = ceil(P / D) rows, with zeros behind it. Methods
cut, stack and mix texts and reach both encoders by gradients without knowing. Word vectors are those of both tables
side by side, so a learned word or a searched prompt is a word or a prompt of both.
s is always that of an uncropped image of the native size, as the pipeline of diffusers has it by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from benchmark.model.clip import TwoClips, same_words, tell_end
from benchmark.model.unet import UNetModel

PIPELINES = ("StableDiffusionXLPipeline",)
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
SETTINGS = ("tokenizer", "tokenizer_2", "scheduler")
FLAGS = ("force_zeros_for_empty_prompt",)
OPTIONAL = ()
SCHEDULERS = ()
LACKS: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class SDXL(TwoClips, UNetModel):
    """Stable Diffusion XL. `empty_is_zero`: the empty text is zeros, as the base was trained, not its encoding."""

    text_encoder_2: CLIPTextModelWithProjection
    tokenizer_2: CLIPTokenizer
    empty_is_zero: bool = True

    @property
    def readers(self) -> tuple[tuple[str, str], ...]:
        """Both tokenizers, each with its text encoder."""
        return (*super().readers, ("tokenizer_2", "text_encoder_2"))

    @property
    def pooled_size(self) -> int:
        """P, as the U-Net expects it beside the six numbers of s."""
        config = self.unet.config
        return int(config.projection_class_embeddings_input_dim) - 6 * int(config.addition_time_embed_dim)

    @property
    def pooled_rows(self) -> int:
        """r, the rows of a text that hold p."""
        return ceil(self.pooled_size / int(self.unet.config.cross_attention_dim))

    @property
    def text_shape(self) -> tuple[int, int]:
        """`(L + r, D)` of a text that `predict` reads."""
        length, width = super().text_shape
        return length + self.pooled_rows, width

    def text_rows(self, text: Tensor, reads: Literal["words", "pooled"]) -> Tensor:
        """h alone: p is read by no layer of the attention, but by the time's embedding."""
        return super().text_rows(text, reads)[:, : -self.pooled_rows]

    def with_text_rows(self, text: Tensor, rows: Tensor, reads: Literal["words", "pooled"]) -> Tensor:
        """A text with another h."""
        return torch.cat([super().with_text_rows(text, rows, reads), text[:, -self.pooled_rows :]], dim=1)

    def encode_words(self, words: Tensor) -> Tensor:
        """The encoding `(B, L + r, D)` of a text given as vectors `(B, L, D_1 + D_2)`: gradients reach the words."""
        one, two = self.answers(words)
        h = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        p = F.pad(two.text_embeds, (0, self.pooled_rows * h.shape[-1] - self.pooled_size))
        return torch.cat([h, p.unflatten(1, (self.pooled_rows, -1))], dim=1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """The encoding of texts `(B, L + r, D)`, each tokenizer with its own rules; see `empty_is_zero`."""
        text = self.encode_words(self.spelled(texts))
        if self.empty_is_zero:
            said = torch.tensor([bool(t) for t in texts], device=text.device)
            text = text * said[:, None, None]
        return text

    def condition(self, text: Tensor) -> dict[str, Any]:
        """A text `(B, L + r, D)` as h, p and s."""
        r = self.pooled_rows
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        height, width = (scale * side for side in self.latent_shape[1:])
        s = torch.tensor([height, width, 0, 0, height, width], dtype=text.dtype, device=text.device)
        added = {"text_embeds": text[:, -r:].flatten(1)[:, : self.pooled_size], "time_ids": s.expand(len(text), -1)}
        return {"encoder_hidden_states": text[:, :-r], "added_cond_kwargs": added}


def pipeline(folder: Path, **components: Any) -> StableDiffusionXLPipeline:
    """The pipeline of a folder, without a watermark: it would differ between cells."""
    return StableDiffusionXLPipeline.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        feature_extractor=None,
        image_encoder=None,
        add_watermarker=False,
        **components,
    )


def model(pipe: Any, scheduler: DDPMScheduler) -> SDXL:
    """The model of a pipeline; its second encoder may be missing where no text is read.

    Raises:
        ValueError: its tokenizers have different words, so that no prompt is one prompt.
    """
    if pipe.text_encoder_2 is not None:
        tell_end(pipe.text_encoder_2, pipe.tokenizer_2)
    same_words(pipe.tokenizer, pipe.tokenizer_2)
    return SDXL(
        unet=pipe.unet,
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        text_encoder_2=pipe.text_encoder_2,
        tokenizer=pipe.tokenizer,
        tokenizer_2=pipe.tokenizer_2,
        scheduler=scheduler,
        empty_is_zero=bool(pipe.config["force_zeros_for_empty_prompt"]),
    )
