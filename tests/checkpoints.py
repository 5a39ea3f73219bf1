"""Tiny checkpoints as projects of the field release them, made of a tiny base: their real names, some numbers changed.

Each maker gets the base and says what it changed, by the base's names.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmark.diffusion import Model

Tensors = dict[str, Tensor]


def seeded(shape: torch.Size | tuple[int, ...], name: str, size: float = 0.1) -> Tensor:
    """Noise that depends on a name alone."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return size * torch.randn(tuple(shape), generator=generator)


def weights(model: Model, part: str = "unet") -> Tensors:
    """A part's own weights."""
    return {name: value.detach().clone() for name, value in model.parts[part].named_parameters()}


def changed(tensors: Mapping[str, Tensor], pattern: str = r"attn2\.to_[kv]") -> Tensors:
    """The tensors, those whose names match with noise on top."""
    return {
        n: t + seeded(t.shape, n, 0.1 * max(float(t.std()), 0.01)) if re.search(pattern, n) else t
        for n, t in tensors.items()
    }


def only(tensors: Mapping[str, Tensor], pattern: str = r"attn2\.to_[kv]") -> Tensors:
    """The tensors whose names match."""
    return {name: value for name, value in tensors.items() if re.search(pattern, name)}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors with something before their names."""
    return {prefix + name: value for name, value in tensors.items()}


def old_text(tensors: Mapping[str, Tensor]) -> Tensors:
    """A text encoder's names before transformers 5."""
    return {n if n.startswith("text_") else f"text_model.{n}": value for n, value in tensors.items()}


def old_vae(tensors: Mapping[str, Tensor]) -> Tensors:
    """A VAE's attention as diffusers named it in 2022."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", r"to_out\.0": "proj_attn"}
    found = dict(tensors)
    for new, old in names.items():
        found = {re.sub(rf"(attentions\.0\.){new}\.", rf"\g<1>{old}.", name): value for name, value in found.items()}
    return found


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def ldm_unet_name(name: str, layers: int) -> str:
    """CompVis' name of a U-Net's parameter or module, for a U-Net of so many layers a block."""
    for new, old in OUTER.items():
        if name == new or name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    found = re.fullmatch(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name)
    assert found is not None, name
    where, block, kind, layer, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "resnets":
        first, _, behind = rest.partition(".")
        rest = ".".join(filter(None, (RESNET[first], behind)))
    if where == "mid":
        return f"middle_block.{2 * layer if kind == 'resnets' else 1}.{rest}"
    if where == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op', 1)}"
        return f"input_blocks.{1 + block * (layers + 1) + layer}.{int(kind == 'attentions')}.{rest}"
    number = block * (layers + 1) + (layers if kind == "upsamplers" else layer)
    return f"output_blocks.{number}.{ {'resnets': 0, 'attentions': 1}.get(kind, -1) }.{rest}"


def ldm_unet(model: Model, tensors: Mapping[str, Tensor], prefix: str = "model.diffusion_model.") -> Tensors:
    """A U-Net's tensors as CompVis names them."""
    layers = int(model.unet.config.layers_per_block)  # type: ignore[attr-defined]
    found = {}
    for name, value in tensors.items():
        old = ldm_unet_name(name, layers)
        if ".-1." in old:  # an upsampler comes behind the attention, if there is one
            head = old.partition(".-1.")[0]
            has_attention = any(
                ldm_unet_name(n, layers).startswith(f"{head}.1.") for n in weights(model) if "upsamplers" not in n
            )
            old = old.replace(".-1.", f".{1 + has_attention}.")
        found[prefix + old] = value
    return found


def ldm_vae(tensors: Mapping[str, Tensor], blocks: int = 2, prefix: str = "first_stage_model.") -> Tensors:
    """A VAE's tensors as CompVis names them; its attention is made of 1 x 1 convolutions."""
    found = {}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name, value in tensors.items():
        old = name.replace("conv_norm_out", "norm_out").replace("mid_block.attentions.0", "mid.attn_1")
        old = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", old)
        old = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", old)
        old = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", old)
        old = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", old)
        old = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", old)
        old = old.replace("conv_shortcut", "nin_shortcut")
        if ".attn_1." in old:
            for new, short in attention.items():
                old = old.replace(f"attn_1.{new}.", f"attn_1.{short}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[prefix + old] = value
    return found


def open_clip(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """A text encoder's tensors as OpenCLIP names them."""
    found: Tensors = {}
    tensors = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    outer = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for name, value in tensors.items():
        old = name.replace("encoder.layers.", "transformer.resblocks.").replace("final_layer_norm", "ln_final")
        for new, short in inner.items():
            old = old.replace(f".{new}.", f".{short}.")
        old = outer.get(old, old.replace(".self_attn.", ".attn."))
        if side := re.search(r"\.q_proj\.(weight|bias)", name):
            both = [tensors[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
            found[prefix + old.replace(side[0], f".in_proj_{side[1]}")] = torch.cat(both)
        elif not re.search(r"\.[kv]_proj\.", name):
            is_projection = name == "text_projection.weight"
            found[prefix + (old.removesuffix(".weight") if is_projection else old)] = (
                value.T if is_projection else value
            )
    return found


def pairs(
    model: Model, rank: int = 2, pattern: str = r"attn2\.to_[kvq]$", part: str = "unet"
) -> dict[str, tuple[Tensor, Tensor]]:
    """Adapters on a part's layers by module: `down (r, in)`, `up (out, r)`."""
    found = {}
    for name, module in model.parts[part].named_modules():
        if re.search(pattern, name) and hasattr(module, "weight"):
            out, width = module.weight.shape[:2]
            kernel = tuple(module.weight.shape[2:])
            down = seeded((rank, width, *kernel), f"{name}down", 0.3)
            up = seeded((out, rank, *(1 for _ in kernel)), f"{name}up", 0.3)
            found[name] = down, up
    assert found
    return found


def kohya(adapters: Mapping[str, tuple[Tensor, Tensor]], alpha: float, prefix: str = "lora_unet_") -> Tensors:
    """Adapters as kohya's scripts and SPM write them."""
    found: Tensors = {}
    for name, (down, up) in adapters.items():
        module = prefix + name.replace(".", "_")
        found |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
        found[f"{module}.alpha"] = torch.tensor(alpha)
    return found


def peft(adapters: Mapping[str, tuple[Tensor, Tensor]], prefix: str) -> Tensors:
    """Adapters as PEFT, and today's diffusers, write them."""
    found: Tensors = {}
    for name, (down, up) in adapters.items():
        found |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return found


def old_diffusers(adapters: Mapping[str, tuple[Tensor, Tensor]]) -> Tensors:
    """Adapters on a U-Net's attention as diffusers wrote them before PEFT."""
    found: Tensors = {}
    for name, (down, up) in adapters.items():
        head, layer = re.fullmatch(r"(.*attn\d)\.(to_\w+?)(?:\.0)?", name).groups()  # type: ignore[union-attr]
        for side, value in (("down", down), ("up", up)):
            found[f"unet.{head}.processor.{layer}_lora.{side}.weight"] = value
    return found


def saved(tensors: Mapping[str, Any], file: Path, header: Mapping[str, str] | None = None) -> Path:
    """A file of tensors, by its ending."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        whole = {name: value.clone().contiguous() for name, value in tensors.items()}
        save_file(whole, file, metadata=dict(header) if header else None)
    else:
        torch.save(dict(tensors), file)
    return file


def adapter_folder(folder: Path, tensors: Mapping[str, Tensor], **settings: Any) -> Path:
    """A folder as PEFT saves an adapter."""
    saved(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    return folder


def merged(model: Model, adapters: Mapping[str, tuple[Tensor, Tensor]], scale: float, part: str = "unet") -> Tensors:
    """A part's weights with adapters in them, by the base's names."""
    own, found = weights(model, part), {}
    for name, (down, up) in adapters.items():
        product = scale * up.float().flatten(1) @ down.float().flatten(1)
        found[f"{part}.{name}.weight"] = own[f"{name}.weight"] + product.reshape(own[f"{name}.weight"].shape)
    return found
