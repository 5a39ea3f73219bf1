"""FLUX.1: a joint transformer on packed latents; T5 is its text, and CLIP gives one pooled vector.

    h(c) = T5(c)                            (B, S, J)
    p(c)                                    CLIP's pooled hidden state, (B, P)
    v    = v_theta(pack(z_s), s, h, p, g)   2 x 2 latents make a token; g is the guidance that dev was distilled with

A text is [h; p] as one tensor `(B, S + r, J)`: p fills the last r = ceil(P / J) rows, with zeros behind it.
-dev takes the guidance as a number, in one pass; what is trained is trained at g = 1, as the training scripts do.
-schnell takes none, and is drawn in four steps. S is what the T5 tokenizer reads at most: 512, and 256 for schnell.
A text given as word vectors has no T5: FLUX's words cannot be searched for.

Licence: -dev FLUX.1 non-commercial, gated; -schnell Apache-2.0. 11.9 B parameters beside T5-XXL's 4.8 B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor
from torch.nn import functional as F
from transformers import T5EncoderModel

from benchmark.model.flow import shift_of
from benchmark.model.packed import Packed, pack, places, unpack
from benchmark.tokens import Stretch, stretch, tokenize

PIPELINES = ("FluxPipeline",)
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
SETTINGS = ("tokenizer", "tokenizer_2", "scheduler")
FLAGS = ()
OPTIONAL = ()
SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
LACKS = {"words": "T5 reads spelled texts alone", "null": "its guidance is distilled, and away from no text"}


@dataclass(frozen=True, kw_only=True)
class Flux(Packed):
    """FLUX.1, -dev or -schnell."""

    text_encoder_2: T5EncoderModel
    tokenizer_2: Any

    @property
    def listeners(self) -> tuple[tuple[str, str], ...]:
        """T5."""
        return (("tokenizer_2", "text_encoder_2"),)

    @property
    def pooled_rows(self) -> int:
        """r, the rows of a text that hold p."""
        return ceil(int(self.config.pooled_projection_dim) / int(self.config.joint_attention_dim))

    @property
    def text_shape(self) -> tuple[int, int]:
        """`(S + r, J)`."""
        return int(self.tokenizer_2.model_max_length) + self.pooled_rows, int(self.config.joint_attention_dim)

    def stretches(self, texts: Sequence[str]) -> tuple[Stretch, ...]:
        """T5's rows."""
        self.gate(texts)
        return (stretch(tokenize(self.tokenizer_2, texts).to(self.device), int(self.tokenizer_2.eos_token_id)),)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """The encoding of texts, `(B, S + r, J)`."""
        h = self.heard(texts, int(self.tokenizer_2.model_max_length))
        p = self.text_encoder(self.ids(texts)).pooler_output
        p = F.pad(p, (0, self.pooled_rows * h.shape[-1] - p.shape[-1]))
        return torch.cat([h, p.unflatten(1, (self.pooled_rows, -1)).to(h)], dim=1)

    def guided(self, z_t: Tensor, t: Tensor, text: Tensor, null: Tensor, scale: float) -> Tensor:
        """The prediction at this guidance, which is a number that the transformer reads, or does not."""
        s = t.to(z_t).expand(len(z_t))
        with self.mixed():
            out = self.velocity(z_t, s, text, scale).to(z_t.dtype)
        self.meter.count(out)
        return out

    def guided_passes(self, scale: float) -> int:
        """One: guidance is distilled."""
        return 1

    def velocity(self, z_s: Tensor, s: Tensor, text: Tensor, guidance: float = 1.0) -> Tensor:
        """v of the transformer, which reads 2 x 2 latents as one token."""
        r, size = self.pooled_rows, int(self.config.pooled_projection_dim)
        _, _, height, width = z_s.shape
        out: Tensor = self.transformer(
            hidden_states=pack(z_s),
            timestep=s,
            guidance=torch.full_like(s, guidance) if self.config.guidance_embeds else None,
            pooled_projections=text[:, -r:].flatten(1)[:, :size],
            encoder_hidden_states=text[:, :-r],
            txt_ids=z_s.new_zeros(text.shape[1] - r, 3),
            img_ids=places(1, height // 2, width // 2, like=z_s),
        ).sample
        return unpack(out, height, width)

    def shift(self, steps: int) -> float:
        """mu of the number of tokens."""
        return shift_of(self.scheduler.config, self.tokens)


def pipeline(folder: Path, **components: Any) -> FluxPipeline:
    """The pipeline of a folder."""
    return FluxPipeline.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, image_encoder=None, feature_extractor=None, **components
    )


def model(pipe: Any, scheduler: FlowMatchEulerDiscreteScheduler) -> Flux:
    """The model of a pipeline."""
    names = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return Flux(**{name: getattr(pipe, name) for name in names}, scheduler=scheduler)
