"""A tiny random flow transformer in Stable Diffusion 3's format, for methods that require joint attention."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from benchmark.diffusion import Model
from benchmark.kit.conformance.tiny import tiny_concept, tiny_model, tiny_pipeline
from benchmark.model.families import sd3


def tiny_for(method: Any) -> Model:
    """The tiny model that a method can be tried on."""
    return tiny_flow() if "joint" in method.requires(tiny_concept()) else tiny_model()


def tiny_flow() -> Model:
    """Two blocks, two text encoders, no T5; frozen, on the CPU, always the same; the global generator stays."""
    pipe = tiny_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
        ends = {name: getattr(pipe.tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
        vocabulary = {
            "vocab_size": len(pipe.tokenizer.get_vocab()),
            "max_position_embeddings": 12,
            "projection_dim": 16,
        }
        text = CLIPTextConfig(**size, **ends, **vocabulary, t5_rows=2)
        transformer = SD3Transformer2DModel(
            sample_size=4,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
        )
        parts = {f"text_encoder{n}": CLIPTextModelWithProjection(text) for n in ("", "_2")}
    parts |= {f"tokenizer{n}": pipe.tokenizer for n in ("", "_2")} | {"text_encoder_3": None, "tokenizer_3": None}
    found = SimpleNamespace(transformer=transformer, vae=pipe.vae, **parts)
    return sd3.model(found, FlowMatchEulerDiscreteScheduler(shift=3.0)).frozen()
