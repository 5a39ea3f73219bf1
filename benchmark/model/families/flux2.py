"""FLUX.2-klein: a joint transformer on packed latents; hidden states of a language model, Qwen3, are its text.

    h(c) = [q_9(c), q_18(c), q_27(c)]       hidden states side by side of c in Qwen's chat template: (B, S, J)
    v    = v_theta(pack(z_s), s, h)         2 x 2 latents make a token
    z    = (pack(z') - m) / sqrt(d + e)     z' the VAE's latents; m, d, e its batch norm's mean, variance and epsilon

S is 512, as in diffusers, or what the config of `text_encoder` has as `text_rows`. Qwen sees which rows are padding;
the transformer reads all. Images enter by the posterior's mode, as in the script. A distilled model needs no guidance.
Trap: the training script reads layers 10, 20 and 30 where the pipeline reads 9, 18 and 27. Ours are the pipeline's.

Licence: klein-base-4B Apache-2.0, klein-9B non-commercial. klein-base-4B: 3.9 B parameters beside Qwen3's 4.0 B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from torch import Tensor

from benchmark.model.packed import Normed, pack, places, unpack
from benchmark.tokens import Stretch, stretch, tokenize

PIPELINES = ("Flux2KleinPipeline",)
PARTS = ("transformer", "vae", "text_encoder")
SETTINGS = ("tokenizer", "scheduler")
FLAGS = ("is_distilled",)
OPTIONAL = ()
SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
LACKS = {"words": "Qwen3 reads spelled texts alone", "readers": "Qwen3 stays as it is"}
LAYERS = (9, 18, 27)  # of the language model


@dataclass(frozen=True, kw_only=True)
class Flux2(Normed):
    """FLUX.2-klein; `is_distilled` says that it was trained to need no guidance."""

    is_distilled: bool = False

    @property
    def readers(self) -> tuple[tuple[str, str], ...]:
        """None."""
        return ()

    @property
    def listeners(self) -> tuple[tuple[str, str], ...]:
        """Qwen3."""
        return (("tokenizer", "text_encoder"),)

    @property
    def text_shape(self) -> tuple[int, int]:
        """`(S, J)`."""
        rows = getattr(getattr(self.text_encoder, "config", None), "text_rows", 512)
        return int(rows), int(self.config.joint_attention_dim)

    def chat(self, texts: Sequence[str]) -> list[str]:
        """Texts in Qwen's template."""
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return list(self.tokenizer.apply_chat_template([[{"role": "user", "content": text}] for text in texts], **how))

    @property
    def pooled_rows(self) -> int:
        """None: there is no pooled text."""
        return 0

    def stretches(self, texts: Sequence[str]) -> tuple[Stretch, ...]:
        """Qwen's rows; a text ends where its turn in the template does."""
        self.gate(texts)
        ids = tokenize(self.tokenizer, self.chat(texts), self.text_shape[0])
        return (stretch(ids.to(self.device), int(self.tokenizer.eos_token_id)),)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """The encoding of texts, `(B, S, J)`; the language model's head is not asked."""
        self.gate(texts)
        said = self.chat(texts)
        cut = {"padding": "max_length", "truncation": True, "max_length": self.text_shape[0]}
        found = self.tokenizer(said, return_tensors="pt", return_token_type_ids=False, **cut).to(self.device)
        hidden = self.text_encoder.model(**found, output_hidden_states=True, use_cache=False).hidden_states
        return torch.cat([hidden[layer] for layer in LAYERS], dim=-1).float()

    def guided_passes(self, scale: float) -> int:
        """One if guidance is distilled."""
        return 1 if self.is_distilled else super().guided_passes(scale)

    def velocity(self, z_s: Tensor, s: Tensor, text: Tensor) -> Tensor:
        """v of the transformer, which reads 2 x 2 latents as one token."""
        height, width = z_s.shape[2:]
        image, words = places(1, height // 2, width // 2, 1, like=z_s), places(1, 1, 1, text.shape[1], like=z_s)
        where = {"img_ids": image, "txt_ids": words}  # time, row, column, number in the text
        out = self.transformer(hidden_states=pack(z_s), timestep=s, encoder_hidden_states=text, **where).sample
        return unpack(out, height, width)

    def shift(self, steps: int) -> float:
        """mu: linear in the tokens, and in the steps between what fits 10 of them and 200."""
        of_200, of_10 = 1.6927e-4 * self.tokens + 0.45666666, 8.73809524e-5 * self.tokens + 1.89833333
        return of_200 if self.tokens > 4300 else of_200 + (of_10 - of_200) * (200 - steps) / 190

    def features(self, answer: Any) -> Tensor:
        """The image's stream; a single block answers with the text's rows before the image's."""
        return answer[:, -self.tokens :] if isinstance(answer, Tensor) else super().features(answer)

    def targets(self, names: Sequence[str]) -> list[str]:
        """As of other flows, and the single blocks' like: their projections are fused with the feed-forward."""
        singles = [name for name, _ in self.transformer.named_modules() if name.startswith("single_")]
        fused = {"to_qkv_mlp_proj": {"to_q", "to_k", "to_v"}, "to_out": {"to_out.0"}}
        ends = tuple(f".attn.{layer}" for layer, like in fused.items() if like & set(names))
        return [*super().targets(names), *(name for name in singles if name.endswith(ends))]


def pipeline(folder: Path, **components: Any) -> Flux2KleinPipeline:
    """The pipeline of a folder."""
    return Flux2KleinPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True, **components)


def model(pipe: Any, scheduler: FlowMatchEulerDiscreteScheduler) -> Flux2:
    """The model of a pipeline."""
    found = {name: getattr(pipe, name) for name in (*PARTS, "tokenizer")}
    return Flux2(**found, scheduler=scheduler, is_distilled=bool(pipe.config.get("is_distilled")))
