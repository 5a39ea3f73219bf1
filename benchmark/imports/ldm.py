"""CompVis' and Stability's names -> diffusers' parts, by the converters of the installed diffusers.

    model.diffusion_model.*                       the U-Net
    model_ema.*                                   left out: a fine-tune keeps the ORIGINAL weights there
    first_stage_model.*                           the VAE
    cond_stage_model.transformer.*                CLIP; cond_stage_model.model.* is OpenCLIP's
    conditioner.embedders.0.transformer.*         the first encoder of SDXL; embedders.1.model.* the second, OpenCLIP's

The converters take whole checkpoints: of a partial one they number blocks by how many there are, and drop what they do
not know. So names alone are converted, beside a placeholder for each block, and whatever comes out nowhere is told.
They are private names of diffusers, pinned by `tests/imports/test_formats.py`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffusers.loaders import single_file_utils as converters
from torch import nn

from benchmark.errors import DataError
from benchmark.imports.names import Sorted, place
from benchmark.imports.read import Tensors

UNET, VAE, EMA, LOSS = "model.diffusion_model.", "first_stage_model.", "model_ema.", "first_stage_model.loss."
CLIP = {"cond_stage_model.transformer.": "text_encoder", "conditioner.embedders.0.transformer.": "text_encoder"}
OPEN_CLIP = {"cond_stage_model.model.": "text_encoder", "conditioner.embedders.1.model.": "text_encoder_2"}
BLOCKS = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.")
BARE_VAE = re.compile(r"(encoder|decoder)\.(mid\.(block|attn)_\d|(down|up)\.\d+\.(block|attn|downsample|upsample))")
SCHEDULE = re.compile(
    r"(log_one_minus_|sqrt_|sqrt_recip_|sqrt_recipm1_|sqrt_one_minus_)?alphas_cumprod(_prev)?|betas|"
    r"posterior_\w+|lvlb_weights|logvar|scale_factor|denoiser\.sigmas"
)
TRAINING = "of the training, not of the model"
ORIGINAL = "the moving average, which in a fine-tune is the original"


def is_ldm(tensors: Iterable[str]) -> bool:
    """Whether names are CompVis', with or without their prefixes."""
    prefixes = (UNET, VAE, EMA, *CLIP, *OPEN_CLIP)
    return any(name.startswith(prefixes) or BLOCKS.match(name) or BARE_VAE.match(name) for name in tensors)


def convert(tensors: Tensors, parts: Mapping[str, Any], into: Sorted) -> None:
    """Sort a checkpoint's tensors into the base's parts.

    Raises:
        DataError: only the moving average is there, or the base has no such part.
    """
    tensors = prefixed(tensors)
    groups: dict[str, Tensors] = {}
    for name, value in tensors.items():
        if name.startswith((EMA, LOSS)) or SCHEDULE.fullmatch(name):
            into.left_out[name] = ORIGINAL if name.startswith(EMA) else TRAINING
        elif prefix := next((p for p in (UNET, VAE, *CLIP, *OPEN_CLIP) if name.startswith(p)), ""):
            groups.setdefault(prefix, {})[name] = value
        else:
            into.unexpected.append(name)
    if UNET not in groups and any(why == ORIGINAL for why in into.left_out.values()):
        raise DataError(
            f"expected weights under {UNET}, got the moving average {EMA} alone, which in a fine-tune is the original "
            "model: save the model itself."
        )
    for prefix, own in groups.items():
        part = {UNET: "unet", VAE: "vae", **CLIP, **OPEN_CLIP}[prefix]
        place(part, {}, parts, into)
        place(part, converted(prefix, own, parts[part], into), parts, into)


def converted(prefix: str, own: Tensors, module: Any, into: Sorted) -> Tensors:
    """The tensors of one part under diffusers' names."""
    if prefix == UNET:
        names = unet_names([name.removeprefix(UNET) for name in own], module.config)
        into.unexpected += [name for name in own if name.removeprefix(UNET) not in names]
        return {new: own[UNET + old] for old, new in names.items()}
    if prefix == VAE:
        try:
            found: Tensors = converters.convert_ldm_vae_checkpoint(dict(own), module.config)
        except KeyError as error:
            raise DataError(f"expected a whole VAE, got one without {error}: save all of it.") from error
        there = {value.data_ptr() for value in found.values()}
        into.unexpected += [name for name, value in own.items() if value.data_ptr() not in there]
        return found
    if prefix in CLIP:
        return converters.convert_ldm_clip_checkpoint(dict(own))
    return open_clip(prefix, own, module, into)


def prefixed(tensors: Tensors) -> Tensors:
    """A U-Net's or a VAE's bare names as a whole checkpoint has them."""
    if any(BLOCKS.match(name) for name in tensors):
        return {UNET + name: value for name, value in tensors.items()}
    if any(BARE_VAE.match(name) for name in tensors):
        return {VAE + name: value for name, value in tensors.items()}
    return tensors


def unet_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers' names of a U-Net's, without prefixes; those that it has no name for are left out."""
    wanted: dict[str, Any] = {UNET + name: name for name in names}
    found = converters.convert_ldm_unet_checkpoint({**placeholders(wanted), **wanted}, config)
    return {old: new for new, old in found.items() if old is not None}


def placeholders(names: Iterable[str]) -> dict[str, None]:
    """What makes the converter see every block up to the largest number, and layers that it asks for."""
    seen = [found for name in names if (found := BLOCKS.match(name.removeprefix(UNET)))]
    largest = {kind: max(int(f[2]) for f in seen if f[1] == kind) for kind in {f[1] for f in seen}}
    made = {f"{UNET}{kind}.{number}.placeholder": None for kind, top in largest.items() for number in range(top + 1)}
    made |= {f"{UNET}label_emb.0.{i}.{what}": None for i in (0, 2) for what in ("weight", "bias")}
    return made | {name.removesuffix("weight") + "bias": None for name in names if name.endswith(".conv.weight")}


def open_clip(prefix: str, own: Tensors, encoder: nn.Module, into: Sorted) -> Tensors:
    """An OpenCLIP text encoder under transformers' names: q, k and v are one matrix there."""
    found: Tensors = converters.convert_open_clip_checkpoint(encoder, dict(own), prefix)
    there = {value.data_ptr() for value in found.values()}
    copied = ("in_proj_weight", "in_proj_bias", "text_projection")
    for name, value in own.items():
        if name in converters.SD_2_TEXT_ENCODER_KEYS_TO_IGNORE or name.endswith(("logit_scale", "attn_mask")):
            into.left_out[name] = "not of the encoder that the base has"
        elif not name.endswith(copied) and value.data_ptr() not in there:
            into.unexpected.append(name)
    return found
