"""What projects of the field release, as tiny files: by the name that docs/import.md gives to each.

A maker writes a source for a tiny base at a path, and returns the weights that the base has once it is imported, by
name: those that the file says anything of.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmark.diffusion import Model
from tests import checkpoints as c

Made = dict[str, Tensor]
Maker = Callable[[Model, Path, Path], Made]  # the base, where the source goes, and the base's folder
TEXT = "text_encoder"


def full(model: Model, path: Path, base: Path) -> Made:
    """A whole U-Net's state dict."""
    x = c.changed(c.weights(model))
    c.saved(x, path)
    return c.prefixed("unet.", x)


def partial(pattern: str, dtype: torch.dtype = torch.float32) -> Maker:
    """Some of the U-Net's tensors."""

    def make(model: Model, path: Path, base: Path) -> Made:
        own = c.only(c.weights(model), pattern)
        x = {name: value.to(dtype) for name, value in c.changed(own, pattern).items()}
        c.saved(x, path)
        rounded = {name: torch.where(x[name] == own[name].to(dtype), own[name], x[name].float()) for name in x}
        return c.prefixed("unet.", rounded)

    return make


def nested(model: Model, path: Path, base: Path) -> Made:
    """ESD's alt: a mapping of modules, each with its own state dict."""
    x = c.only(c.changed(c.weights(model)))
    modules: dict[str, dict[str, Tensor]] = {}
    for name, value in x.items():
        module, _, parameter = name.rpartition(".")
        modules.setdefault(f"unet.{module}", {})[parameter] = value
    c.saved(modules, path)
    return c.prefixed("unet.", x)


def with_header(model: Model, path: Path, base: Path) -> Made:
    """ESD's newest trainer: what was trained, on what, stands in the header."""
    x = c.only(c.changed(c.weights(model)))
    header = {"component": "unet", "family": "sd", "train_method": "esd-x", "erase_concept": "Van Gogh"}
    c.saved(x, path, header | {"base_model_id": "CompVis/stable-diffusion-v1-4"})
    return c.prefixed("unet.", x)


def text_state(model: Model, path: Path, base: Path) -> Made:
    """AdvUnlearn's text encoder: names of before transformers 5, behind `text_encoder.`, with a buffer."""
    x = c.changed(c.weights(model, TEXT), r"mlp|self_attn")
    ids = torch.arange(model.tokenizer.model_max_length)[None]
    c.saved(c.prefixed("text_encoder.", c.old_text(x | {"embeddings.position_ids": ids})), path)
    return c.prefixed(f"{TEXT}.", x)


def text_folder(model: Model, path: Path, base: Path) -> Made:
    """A text encoder's folder, as transformers 4 wrote it."""
    x = c.changed(c.weights(model, TEXT), r"mlp|self_attn")
    c.saved(c.old_text(x), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModel"]}))
    return c.prefixed(f"{TEXT}.", x)


def unet_folder(model: Model, path: Path, base: Path) -> Made:
    """A U-Net's folder."""
    changed = model.clone()
    changed.denoiser.load_state_dict(c.changed(c.weights(model)))
    changed.denoiser.save_pretrained(path)  # type: ignore[operator]
    return c.prefixed("unet.", c.weights(changed))


def two_parts(model: Model, path: Path, base: Path) -> Made:
    """Concept Ablation's and MIMA's mapping: whole weights, whatever the name `delta` says."""
    x, y = c.only(c.changed(c.weights(model))), c.changed(c.weights(model, TEXT), "mlp")
    c.saved({"unet": x, "text_encoder": c.old_text(y)}, path)
    return c.prefixed("unet.", x) | c.prefixed(f"{TEXT}.", y)


def pipeline(model: Model, path: Path, base: Path) -> Made:
    """A pipeline's folder, every part of it."""
    from benchmark.model.families.sd import pipeline as opened

    changed = model.clone()
    changed.denoiser.load_state_dict(c.changed(c.weights(model)))
    opened(base, **changed.components).save_pretrained(path)
    return c.prefixed("unet.", c.weights(changed))


def compvis(model: Model, path: Path, base: Path) -> Made:
    """A whole CompVis checkpoint: the moving average in it is the original."""
    x, own = c.changed(c.weights(model)), c.weights(model)
    ema = {"model_ema." + n.removeprefix("model.").replace(".", ""): v for n, v in c.ldm_unet(model, own).items()}
    state = c.ldm_unet(model, x) | ema | c.ldm_vae(c.weights(model, "vae"))
    state |= c.prefixed("cond_stage_model.transformer.", c.old_text(c.weights(model, TEXT)))
    state |= {"betas": torch.ones(3), "alphas_cumprod": torch.ones(3), "model_ema.decay": torch.tensor(0.99)}
    c.saved({"state_dict": state, "global_step": 7}, path)
    return c.prefixed("unet.", x)


def compvis_part(model: Model, path: Path, base: Path) -> Made:
    """A few layers of CompVis' U-Net, of which the converter of diffusers alone would drop some."""
    x = c.only(c.changed(c.weights(model)))
    c.saved({"state_dict": c.ldm_unet(model, x)}, path)
    return c.prefixed("unet.", x)


def decoder(model: Model, path: Path, base: Path) -> Made:
    """Patronus' decoder, trained on several GPUs."""
    x = c.only(c.changed(c.weights(model, "vae"), "decoder"), "decoder|post_quant")
    c.saved({"state_dict": c.ldm_vae(x, prefix="module.first_stage_model."), "loop": 3}, path)
    return c.prefixed("vae.", x)


def peft_ldm(model: Model, path: Path, base: Path) -> Made:
    """PEFT on CompVis' layers, in a folder of its own."""
    given = c.pairs(model)
    layers = int(model.unet.config.layers_per_block)  # type: ignore[attr-defined]
    named = {f"model.diffusion_model.{c.ldm_unet_name(name, layers)}": pair for name, pair in given.items()}
    c.adapter_folder(path, c.peft(named, "base_model.model."), r=2, lora_alpha=8)
    return c.merged(model, given, 4.0)


def spm(model: Model, path: Path, base: Path) -> Made:
    """SPM's membranes: rank 1."""
    given = c.pairs(model, 1, r"attn[12]\.to_(q|k|v|out\.0)$|ff\.net\.(0\.proj|2)$|proj_(in|out)$")
    c.saved(c.kohya(given, 0.5), path)
    return c.merged(model, given, 0.5)


def flux_lora(model: Model, path: Path, base: Path) -> Made:
    """EraseAnything's adapters on FLUX's attention, bfloat16."""
    given = c.pairs(model, 2, r"transformer_blocks\.\d\.attn\.add_[kq]_proj$", "transformer")
    given = {name: (down.bfloat16(), up.bfloat16()) for name, (down, up) in given.items()}
    c.saved(c.peft(given, "transformer."), path)
    return c.merged(model, given, 1.0, "transformer")


def flux_part(model: Model, path: Path, base: Path) -> Made:
    """UCE's edit of FLUX."""
    pattern = r"^context_embedder\.weight|text_embedder\.linear_1\.weight"
    x = c.only(c.changed(c.weights(model, "transformer"), pattern), pattern)
    c.saved(x, path)
    return c.prefixed("transformer.", x)


VALUES = r"attn2\.to_v"
KEYS_VALUES = r"attn2\.to_[kv]\.weight"
RELEASES: dict[str, Maker] = {
    "ESD-Nudity-Diffusers-UNet.pt": full,
    "diffusers-VanGogh-ESDx1-UNET.pt": full,
    "compvis-VanGogh-ESDx1-UNET.pt": compvis,
    "esd-van_gogh-from-van_gogh-esdx.safetensors": partial(r"attn2\.", torch.bfloat16),
    "esd-alt-van_gogh.pt": nested,
    "esd-trainer-van_gogh.safetensors": with_header,
    "uce_models/van_gogh.safetensors": partial(KEYS_VALUES),
    "uce_models/flux_van_gogh.safetensors": flux_part,
    "erased-van_gogh.pt": full,
    "ChaoGong/RECE/nudity_ep2.pt": full,
    "speed_van_gogh.pt": partial(KEYS_VALUES),
    "oce_van_gogh.safetensors": partial(VALUES),
    "OPTML-Group/AdvUnlearn/vangogh_unlearned": text_folder,
    "OPTML-Group/AdvUnlearn/church_unlearned": text_folder,
    "AdvUnlearn_Nudity_text_encoder_full.pt": text_state,
    "Compvis-UNet-church.pt": compvis,
    "delta-van_gogh.bin": two_parts,
    "delta_epoch=1.ckpt": compvis_part,
    "spm_van_gogh.safetensors": spm,
    "mace_van_gogh": pipeline,
    "EraseFlow/VANGOGH": pipeline,
    "DiffusionConceptErasure/esdx_vangogh/unet": unet_folder,
    "SalUn-church.ckpt": compvis,
    "diffusers-SalUn-church.pt": full,
    "imma_unet_xatten_layer.pt": partial(r"attn\d\.to_(q|k|v|out)"),
    "mima/delta_ckpt.pt": two_parts,
    "best@loop_9@tarloss.pt": decoder,
    "patronus-unet": peft_ldm,
    "resalign-unet.pt": full,
    "eraseanything/pytorch_lora_weights.safetensors": flux_lora,
}
