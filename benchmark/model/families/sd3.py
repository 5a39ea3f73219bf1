"""Stable Diffusion 3 and 3.5: a joint transformer over two CLIPs side by side and T5 below them.

    h(c) = [h_1(c), h_2(c), 0 ...]      penultimate hidden states of both CLIPs, padded to the width J: (B, L, J)
           [T5(c)]                      S rows below; zeros without T5, which the authors support
    p(c) = [p_1(c), p_2(c)]             both projected hidden states at the end of the text: (B, P)
    v    = v_theta(z_s, 1000 s, h, p)

A text is [h; p] as one tensor `(B, L + S + r, J)`: p fills the last r = ceil(P / J) rows, with zeros behind it.
T5 listens to the spelled text alone: a text given as word vectors gets its rows of zeros.
S is 256, as the pipeline of diffusers has it, unless the config of `text_encoder` says otherwise in `t5_rows`.
Trap: `attn2` of 3.5-medium is a second attention of the image to itself, not to the text.

Licence: Stability AI Community, gated. SD 3 medium 2.0 B parameters, 3.5-medium 2.5 B, 3.5-large 8.1 B; T5-XXL 4.8 B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from benchmark.model.clip import TwoClips, same_words, tell_end
from benchmark.model.flow import FlowModel
from benchmark.tokens import Stretch, stretch, tokenize

PIPELINES = ("StableDiffusion3Pipeline",)
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
SETTINGS = ("tokenizer", "tokenizer_2", "scheduler")
FLAGS = ()
OPTIONAL = ("text_encoder_3", "tokenizer_3")
SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
LACKS: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class SD3(TwoClips, FlowModel):
    """Stable Diffusion 3; without T5 its rows are zeros."""

    text_first: ClassVar[bool] = False

    text_encoder_2: CLIPTextModelWithProjection
    tokenizer_2: CLIPTokenizer
    text_encoder_3: T5EncoderModel | None = None
    tokenizer_3: Any = None

    @property
    def readers(self) -> tuple[tuple[str, str], ...]:
        """Both CLIPs."""
        return (*super().readers, ("tokenizer_2", "text_encoder_2"))

    @property
    def listeners(self) -> tuple[tuple[str, str], ...]:
        """T5, if it is there."""
        return (("tokenizer_3", "text_encoder_3"),) if self.text_encoder_3 is not None else ()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, h, w)` of the transformer's input at its native size."""
        return int(self.config.in_channels), int(self.config.sample_size), int(self.config.sample_size)

    @property
    def t5_rows(self) -> int:
        """S."""
        return int(getattr(getattr(self.text_encoder, "config", None), "t5_rows", 256))

    @property
    def pooled_rows(self) -> int:
        """r, the rows of a text that hold p."""
        return ceil(int(self.config.pooled_projection_dim) / int(self.config.joint_attention_dim))

    @property
    def text_shape(self) -> tuple[int, int]:
        """`(L + S + r, J)`."""
        rows = int(self.tokenizer.model_max_length) + self.t5_rows + self.pooled_rows
        return rows, int(self.config.joint_attention_dim)

    def stretches(self, texts: Sequence[str]) -> tuple[Stretch, ...]:
        """CLIP's rows, and T5's below if it is there."""
        of_clip = super().stretches(texts)
        if self.text_encoder_3 is None:
            return of_clip
        ids = tokenize(self.tokenizer_3, texts, self.t5_rows).to(self.device)
        below = int(self.tokenizer.model_max_length)
        return (*of_clip, stretch(ids, int(self.tokenizer_3.eos_token_id), below))

    def encode_words(self, words: Tensor) -> Tensor:
        """The encoding `(B, L + S + r, J)` of word vectors `(B, L, D_1 + D_2)`; T5's rows are zeros."""
        return self.joined(words, None)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """The encoding of texts, `(B, L + S + r, J)`."""
        heard = self.heard(texts, self.t5_rows) if self.text_encoder_3 is not None else None
        return self.joined(self.spelled(texts), heard)

    def joined(self, words: Tensor, heard: Tensor | None) -> Tensor:
        """h and p of word vectors, with T5's rows `(B, S, J)`; without them these are zeros."""
        if heard is None:
            heard = words.new_zeros(len(words), self.t5_rows, self.text_shape[1])
        said = self.answers(words)
        h = torch.cat([one.hidden_states[-2] for one in said], dim=-1)
        p = torch.cat([one.text_embeds for one in said], dim=-1)
        width = self.text_shape[1]
        p = F.pad(p, (0, self.pooled_rows * width - p.shape[-1])).unflatten(1, (self.pooled_rows, width))
        return torch.cat([F.pad(h, (0, width - h.shape[-1])), heard, p], dim=1)

    def velocity(self, z_s: Tensor, s: Tensor, text: Tensor) -> Tensor:
        """v of the transformer, which counts time to 1,000."""
        r, size = self.pooled_rows, int(self.config.pooled_projection_dim)
        found: Tensor = self.transformer(
            hidden_states=z_s,
            timestep=1000 * s,
            encoder_hidden_states=text[:, :-r],
            pooled_projections=text[:, -r:].flatten(1)[:, :size],
        ).sample
        return found


def pipeline(folder: Path, **components: Any) -> StableDiffusion3Pipeline:
    """The pipeline of a folder; T5 stays away if the folder has none."""
    absent = {name: None for name in OPTIONAL if not (folder / name).is_dir()}
    return StableDiffusion3Pipeline.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, **absent, **components
    )


def model(pipe: Any, scheduler: FlowMatchEulerDiscreteScheduler) -> SD3:
    """The model of a pipeline.

    Raises:
        ValueError: its CLIP tokenizers have different words, so that no prompt is one prompt.
    """
    same_words(pipe.tokenizer, pipe.tokenizer_2)
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        if encoder is not None:
            tell_end(encoder, tokenizer)
    names = [name for name in (*PARTS, *SETTINGS, *OPTIONAL) if name != "scheduler"]
    return SD3(**{name: getattr(pipe, name) for name in names}, scheduler=scheduler)
