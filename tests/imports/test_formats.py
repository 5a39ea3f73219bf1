"""Each format that projects release comes back as the weights that it was made of, by diffusers' own converters."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.imports.look import Read, look
from benchmark.imports.sources import find
from benchmark.model import load
from tests import checkpoints as c
from tests import pipelines, releases
from tests.releases import RELEASES, Made

KINDS = {
    "CompVis state dict": ("compvis", "Compvis", "SalUn-", "delta_epoch", "best@"),
    "kohya LoRA": ("spm",),
    "PEFT LoRA": ("patronus",),
    "diffusers LoRA": ("eraseanything",),
    "pipeline folder": ("mace", "EraseFlow"),
}


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(pipelines.write("schnell", tmp_path_factory.mktemp("flux") / "flux"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(pipelines.write("sdxl", tmp_path_factory.mktemp("sdxl") / "sdxl"))


def read(path: Path, model: Model, component: str = "") -> Read:
    """What an import of a source finds."""
    return look(find(str(path)), model, component)


def check(found: Read, model: Model, expected: Made) -> None:
    """The base with the change has the weights of the file, and its own elsewhere."""
    changed, moved = model.with_delta(found.delta), set()
    for part, module in changed.parts.items():
        own = dict(model.parts[part].named_parameters())
        for name, value in module.named_parameters():
            wanted = expected.get(f"{part}.{name}", own[name])
            assert torch.allclose(value, wanted, rtol=1e-6, atol=1e-7), f"{part}.{name}"
            moved |= {f"{part}.{name}"} if not torch.equal(value, own[name]) else set()
    assert moved and moved <= set(expected)


FIRST = list({make: name for name, make in reversed(RELEASES.items())}.values())  # of each way to write them


@pytest.mark.parametrize("name", FIRST)
def test_a_release_comes_back_as_its_weights(
    name: str, loaded: Model, flux: Model, tiny_folder: Path, tmp_path: Path
) -> None:
    make = RELEASES[name]
    model = flux if make in (releases.flux_lora, releases.flux_part) else loaded
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)

    expected = make(model, tmp_path / name, tiny_folder)
    found = read(tmp_path / name, model)

    check(found, model, expected)
    kind = next((kind for kind, stems in KINDS.items() if name.startswith(stems)), "diffusers state dict")
    assert found.formats == [kind] * len(found.formats)
    changed_alone = {n for n, value in expected.items() if not torch.equal(value, before(model, n))}
    assert {*found.dense, *(f"{n}.weight" for n in found.low_rank)} == changed_alone


def before(model: Model, name: str) -> torch.Tensor:
    part, _, inner = name.partition(".")
    return model.parts[part].get_parameter(inner).detach()


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "safetensors"])
def test_every_ending_is_read(loaded: Model, tiny_folder: Path, tmp_path: Path, ending: str) -> None:
    expected = releases.partial(releases.KEYS_VALUES)(loaded, tmp_path / f"file.{ending}", tiny_folder)

    check(read(tmp_path / f"file.{ending}", loaded), loaded, expected)


@pytest.mark.parametrize("save", [{"variant": "fp16"}, {"max_shard_size": "20KB"}, {"safe_serialization": False}])
def test_a_variant_shards_and_old_files_of_a_part_are_read(loaded: Model, tmp_path: Path, save: dict[str, str]) -> None:
    changed = loaded.clone()
    changed.denoiser.load_state_dict(c.changed(c.weights(loaded)))
    changed.denoiser.save_pretrained(tmp_path / "unet", **save)  # type: ignore[operator]

    check(read(tmp_path / "unet", loaded), loaded, c.prefixed("unet.", c.weights(changed)))
    if "max_shard_size" in save:
        assert len(find(str(tmp_path / "unet")).parts[""]) > 2
        next((tmp_path / "unet").glob("*-00002-of-*")).unlink()
        with pytest.raises(Exception, match=r"shards in .*copy it again"):
            find(str(tmp_path / "unet"))


@pytest.mark.parametrize(
    "write",
    [
        lambda given: c.peft(given, "unet."),
        c.old_diffusers,
        lambda given: {n.replace("lora_A.weight", "lora.down.weight").replace("lora_B.weight", "lora.up.weight"): t
                       for n, t in c.peft(given, "unet.").items()},
        lambda given: {n.replace(".weight", ".default.weight"): t for n, t in c.peft(given, "unet.").items()},
    ],
    ids=["diffusers", "before PEFT", "lora.down", "named adapter"],
)  # fmt: skip
def test_each_way_of_diffusers_to_write_adapters(
    loaded: Model, tmp_path: Path, write: Callable[..., c.Tensors]
) -> None:
    given = c.pairs(loaded, 2, r"attn[12]\.to_(q|k|v|out\.0)$")
    c.saved(write(given), tmp_path / "pytorch_lora_weights.safetensors")

    found = read(tmp_path / "pytorch_lora_weights.safetensors", loaded)

    check(found, loaded, c.merged(loaded, given, 1.0))


@pytest.mark.parametrize("style", ["peft", "lora_linear_layer", "kohya"])
def test_adapters_of_a_text_encoder_come_under_its_own_names(loaded: Model, tmp_path: Path, style: str) -> None:
    given = c.pairs(loaded, 2, r"self_attn\.(q|k|v|out)_proj$|mlp\.fc", "text_encoder")
    old = {f"text_model.{name}": pair for name, pair in given.items()}
    tensors = c.peft(old, "text_encoder.")
    if style == "kohya":
        tensors = c.kohya(old, 1.0, "lora_te_")
    elif style == "lora_linear_layer":
        ends = {"lora_A.weight": "lora_linear_layer.down.weight", "lora_B.weight": "lora_linear_layer.up.weight"}
        tensors = {n.replace(e, ends[e]): t for n, t in tensors.items() for e in ends if n.endswith(e)}
    c.saved(tensors, tmp_path / "a.safetensors")

    check(
        read(tmp_path / "a.safetensors", loaded),
        loaded,
        c.merged(loaded, given, 0.5 if style == "kohya" else 1.0, "text_encoder"),
    )


def test_kohyas_adapters_of_convolutions(loaded: Model, tmp_path: Path) -> None:
    given = c.pairs(loaded, 2, r"resnets\.0\.(conv[12]|time_emb_proj)$|downsamplers\.0\.conv$")
    c.saved(c.kohya(given, 2.0), tmp_path / "a.safetensors")

    check(read(tmp_path / "a.safetensors", loaded), loaded, c.merged(loaded, given, 1.0))


def test_an_sdxl_checkpoint_with_both_encoders(sdxl: Model, tmp_path: Path) -> None:
    x = c.changed(c.weights(sdxl))
    y, z = (c.changed(c.weights(sdxl, part), "mlp") for part in ("text_encoder", "text_encoder_2"))
    state = c.ldm_unet(sdxl, x) | c.prefixed("conditioner.embedders.0.transformer.", c.old_text(y))
    state |= c.open_clip(z, "conditioner.embedders.1.model.") | c.ldm_vae(c.weights(sdxl, "vae"))
    c.saved(state, tmp_path / "xl.safetensors")

    found = read(tmp_path / "xl.safetensors", sdxl)

    expected = c.prefixed("unet.", x) | c.prefixed("text_encoder.", y) | c.prefixed("text_encoder_2.", z)
    check(found, sdxl, expected)
    assert found.components == ["unet", "text_encoder", "text_encoder_2", "vae"] or set(found.components) == set(
        sdxl.parts
    )


def test_kohyas_adapters_of_sdxl_have_compvis_block_names(sdxl: Model, tmp_path: Path) -> None:
    given, layers = c.pairs(sdxl), int(sdxl.unet.config.layers_per_block)  # type: ignore[attr-defined]
    named = {c.ldm_unet_name(name, layers): pair for name, pair in given.items()}
    second = c.pairs(sdxl, 2, "mlp.fc1$", "text_encoder_2")
    c.saved(c.kohya(named, 2.0) | c.kohya(second, 2.0, "lora_te2_"), tmp_path / "a.safetensors")

    expected = c.merged(sdxl, given, 1.0) | c.merged(sdxl, second, 1.0, "text_encoder_2")
    check(read(tmp_path / "a.safetensors", sdxl), sdxl, expected)


def test_kohyas_adapters_of_flux(flux: Model, tmp_path: Path) -> None:
    names = {
        "transformer_blocks.0.attn.to_out.0": "double_blocks_0_img_attn_proj",
        "transformer_blocks.0.attn.to_add_out": "double_blocks_0_txt_attn_proj",
        "transformer_blocks.0.ff_context.net.0.proj": "double_blocks_0_txt_mlp_0",
        "single_transformer_blocks.0.proj_out": "single_blocks_0_linear2",
    }
    given = c.pairs(flux, 2, "|".join(f"^{name}$" for name in names), "transformer")
    assert set(given) == set(names)
    c.saved(c.kohya({names[name]: pair for name, pair in given.items()}, 1.0), tmp_path / "a.safetensors")

    check(read(tmp_path / "a.safetensors", flux), flux, c.merged(flux, given, 0.5, "transformer"))


def test_two_parts_that_a_file_fits_need_a_word(sdxl: Model, tmp_path: Path) -> None:
    """Biases of one size have the names of either encoder."""
    value = torch.zeros(32)
    c.saved({"encoder.layers.0.mlp.fc1.bias": value + 0.01}, tmp_path / "a.safetensors")

    with pytest.raises(Exception, match="names that fit text_encoder and text_encoder_2: give --component"):
        read(tmp_path / "a.safetensors", sdxl)
