"""What silently gives the undefended model, or another one, elsewhere: here it is read rightly, told, or refused."""

from pathlib import Path

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.errors import DataError
from benchmark.imports.look import Read, look
from benchmark.imports.sources import find
from tests import checkpoints as c

TEXT, KEYS = "text_encoder", r"attn2\.to_[kv]"


def read(tensors: c.Tensors, model: Model, path: Path, component: str = "", **header: str) -> Read:
    """What an import of such a file finds."""
    return look(find(str(c.saved(tensors, path / "file.safetensors", header))), model, component)


# (a) transformers 5 holds text encoders without `text_model.`.


def test_an_old_text_encoder_lands_whole(loaded: Model, tmp_path: Path) -> None:
    """`load_state_dict(strict=False)` of it loads nothing, and says nothing."""
    x = c.changed(c.weights(loaded, TEXT), "mlp")
    old = c.old_text(x)
    keys = loaded.text_encoder.load_state_dict(old, strict=False)
    assert set(keys.unexpected_keys) == set(old)

    found = read(old, loaded, tmp_path)

    assert set(found.dense) == {f"{TEXT}.{name}" for name in x if "mlp" in name}
    assert (found.matched, found.missing) == (len(x), [])


def test_an_old_text_encoder_behind_compvis_prefix_lands_whole(loaded: Model, tmp_path: Path) -> None:
    """diffusers' converter takes off the prefix alone."""
    x = c.changed(c.weights(loaded, TEXT), "mlp")

    found = read(c.prefixed("cond_stage_model.transformer.", c.old_text(x)), loaded, tmp_path)

    assert set(found.dense) == {f"{TEXT}.{name}" for name in x if "mlp" in name}


# (b) The moving average of a CompVis fine-tune is the original.


def ema(model: Model, tensors: c.Tensors) -> c.Tensors:
    return {f"model_ema.{n[6:].replace('.', '')}": v for n, v in c.ldm_unet(model, tensors).items()}


def test_the_moving_average_is_left_out_and_told(loaded: Model, tmp_path: Path) -> None:
    own = c.weights(loaded)
    x = c.changed(own)

    found = read(c.ldm_unet(loaded, x) | ema(loaded, own), loaded, tmp_path)

    assert set(found.dense) == {f"unet.{name}" for name in c.only(x)}
    assert all("is the original" in why for why in found.left_out.values()) and len(found.left_out) == len(own)


def test_a_file_of_the_moving_average_alone_is_refused(loaded: Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"moving average model_ema. alone, which in a fine-tune is the original"):
        read(ema(loaded, c.weights(loaded)), loaded, tmp_path)


def test_the_base_itself_is_refused(loaded: Model, tmp_path: Path) -> None:
    """Whatever its names: somebody has exported the moving average."""
    for own in (c.weights(loaded), c.ldm_unet(loaded, c.weights(loaded))):
        with pytest.raises(DataError, match="expected a change of the base, got its own weights"):
            read(own, loaded, tmp_path)


# (c) A file that was made on another base.


def test_a_file_on_another_base_is_told(loaded: Model, tmp_path: Path) -> None:
    """Nothing equals the base: the differences of the bases count as its change, which norms by scope show."""
    other = {name: value + c.seeded(value.shape, name, 0.01) for name, value in c.weights(loaded).items()}

    found = read(c.changed(other), loaded, tmp_path)

    assert found.equal == 0
    assert any("no tensor of unet equals the base's" in warning for warning in found.warnings)
    assert read(c.changed(c.weights(loaded)), loaded, tmp_path).warnings == []


def test_another_model_is_refused(loaded: Model, tmp_path: Path) -> None:
    random = {name: c.seeded(value.shape, name, 0.3) for name, value in c.weights(loaded).items()}
    wider = c.weights(loaded) | {"conv_in.weight": torch.zeros(9, 4, 3, 3)}

    with pytest.raises(DataError, match=r"of .* times its norm at .* of it away: is it of another model"):
        read(random, loaded, tmp_path)
    with pytest.raises(DataError, match=r"expected unet.conv_in.weight of shape \(8, 4, 3, 3\), got \(9, 4, 3, 3\)"):
        read(wider, loaded, tmp_path)


# (d) `strict=False` says nothing of names that do not fit.


@pytest.mark.parametrize("name", ["down_blocks.9.resnets.0.conv1.weight", "conv_in.wieght", "conv_in.weight_scale"])
def test_a_name_that_the_base_lacks_is_an_error(loaded: Model, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"expected names of the base alone, got unet.{name}"):
        read(c.changed(c.weights(loaded)) | {name: torch.zeros(8)}, loaded, tmp_path)


@pytest.mark.parametrize("layer", ["output_blocks.0.3.bias", "input_blocks.1.0.in_layers.9.weight", "out.7.weight"])
def test_a_name_that_the_converter_would_drop_is_an_error(loaded: Model, tmp_path: Path, layer: str) -> None:
    state = c.ldm_unet(loaded, c.changed(c.weights(loaded))) | {f"model.diffusion_model.{layer}": torch.zeros(8)}

    with pytest.raises(DataError, match="expected names of the base alone"):
        read(state, loaded, tmp_path)


def test_a_vaes_name_that_the_converter_would_drop_is_an_error(loaded: Model, tmp_path: Path) -> None:
    state = c.ldm_vae(c.changed(c.weights(loaded, "vae"), "decoder")) | {"first_stage_model.extra.bias": torch.ones(8)}

    with pytest.raises(DataError, match=r"got first_stage_model.extra.bias"):
        read(state, loaded, tmp_path)


def test_names_of_nothing_are_an_error(loaded: Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected weights of unet, vae, text_encoder, got none: the names are a.b"):
        read({"a.b": torch.ones(8)}, loaded, tmp_path)
    with pytest.raises(DataError, match="expected parts of the base, unet, vae, text_encoder, got 'transformer'"):
        read({"transformer.proj_out.bias": torch.ones(8)}, loaded, tmp_path)


def test_every_layer_of_a_partial_compvis_file_lands(loaded: Model, tmp_path: Path) -> None:
    """diffusers numbers blocks by how many there are, and drops those behind."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    x = c.only(c.changed(c.weights(loaded)))
    state = c.ldm_unet(loaded, x)
    assert len(convert_ldm_unet_checkpoint(dict(state), loaded.unet.config)) < len(x)  # type: ignore[attr-defined]

    assert set(read(state, loaded, tmp_path).dense) == {f"unet.{name}" for name in x}


# (e) A name that says `delta` says nothing.


def test_weights_and_differences_are_told_apart(loaded: Model, tmp_path: Path) -> None:
    own = c.only(c.weights(loaded))
    x = c.changed(own)
    differences = {name: x[name] - own[name] for name in x}

    weights, difference = (read(c.prefixed("unet.", t), loaded, tmp_path) for t in (x, differences))

    assert (weights.values, difference.values) == (["weights"], ["difference"])
    for name, value in weights.dense.items():
        torch.testing.assert_close(value, difference.dense[name])


def test_what_tensors_are_can_be_said(loaded: Model, tmp_path: Path) -> None:
    """A change that is larger than the weights has the norms of neither."""
    x = {name: value + c.seeded(value.shape, name, 2.0) for name, value in c.only(c.weights(loaded)).items()}
    file = find(str(c.saved(x, tmp_path / "a.safetensors")))

    with pytest.raises(DataError, match="give --values"):
        look(file, loaded)

    found = look(file, loaded, values="weights")
    assert set(found.dense) == {f"unet.{name}" for name in x}


# (f) Rounding.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_no_change(loaded: Model, tmp_path: Path, dtype: torch.dtype) -> None:
    own = c.weights(loaded)
    x = {name: value.to(dtype) for name, value in c.changed(own).items()}
    assert not any(
        torch.equal(x[name].float(), own[name]) for name in x if name.endswith("weight") and "norm" not in name
    )

    found = read(x, loaded, tmp_path)

    assert set(found.dense) == {f"unet.{name}" for name in c.only(x)}
    assert dict(found.dtypes) == {str(dtype).removeprefix("torch."): len(x)}
    one = f"unet.{next(iter(c.only(x)))}"
    same = x[one[5:]] == own[one[5:]].to(dtype)
    assert not found.dense[one][same].any()
    torch.testing.assert_close((own[one[5:]] + found.dense[one])[~same], x[one[5:]].float()[~same])


# (g) Prefixes.


@pytest.mark.parametrize(
    "prefix",
    ["module.", "unet.", "module.unet.", "unet.module.", "state_dict.", "state_dict.module.unet.", "_orig_mod."],
)
def test_prefixes_are_taken_off(loaded: Model, tmp_path: Path, prefix: str) -> None:
    x = c.changed(c.weights(loaded))

    assert set(read(c.prefixed(prefix, x), loaded, tmp_path).dense) == {f"unet.{name}" for name in c.only(x)}


def test_the_layers_of_merged_adapters_are_taken_by_their_names(loaded: Model, tmp_path: Path) -> None:
    """A model that was saved with fused adapters on it."""
    x = c.changed(c.weights(loaded))
    fused = {name.replace(".to_k.", ".to_k.base_layer."): value for name, value in x.items()}

    assert set(read(fused, loaded, tmp_path).dense) == {f"unet.{name}" for name in c.only(x)}
    lora = c.peft(c.pairs(loaded), "")
    with pytest.raises(DataError, match=r"got '.*lora_A.weight' beside its base_layer: call `merge_and_unload"):
        read(fused | lora, loaded, tmp_path)


def test_what_lies_beside_a_state_dict_is_left_out_and_told(loaded: Model, tmp_path: Path) -> None:
    x = c.prefixed("state_dict.", c.changed(c.weights(loaded)))

    found = read(x | {"optimizer_states.0.exp_avg": torch.ones(3)}, loaded, tmp_path)

    assert found.left_out == {"optimizer_states.0.exp_avg": "beside the state_dict"}


# (h) The attention of VAEs of 2022.


def test_an_old_vae_lands_whole(loaded: Model, tmp_path: Path) -> None:
    x = c.changed(c.weights(loaded, "vae"), "decoder")
    old = c.old_vae(x)
    assert sum("proj_attn" in name for name in old) == 4

    found = read(old, loaded, tmp_path)

    assert set(found.dense) == {f"vae.{name}" for name in x if "decoder" in name}
    assert (found.matched, found.missing) == (len(x), [])


# (i) Methods that look at the prompt are others once they are merged: `test_command.py`.


# Adapters that are not what they seem.


def test_peft_without_its_settings_is_refused(loaded: Model, tmp_path: Path) -> None:
    """Its scale stands in them alone."""
    tensors = c.peft(c.pairs(loaded), "base_model.model.")

    with pytest.raises(DataError, match=r"expected adapter_config.json beside PEFT's adapter, which says its alpha"):
        read(tensors, loaded, tmp_path)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"lora_alpha": 6}, 3.0),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5),
        ({"lora_alpha": 6, "alpha_pattern": {"to_k": 1, "to_q": 1, "to_v": 1}}, 0.5),
    ],
)
def test_peft_is_scaled_as_its_settings_say(
    loaded: Model, tmp_path: Path, settings: dict[str, object], scale: float
) -> None:
    given = c.pairs(loaded)
    folder = c.adapter_folder(tmp_path / "a", c.peft(given, "base_model.model."), r=2, **settings)

    found = look(find(str(folder)), loaded)

    for name, (_, up) in given.items():
        torch.testing.assert_close(found.low_rank[f"unet.{name}"][1], scale * up)


def test_diffusers_adapters_are_scaled_as_their_header_says(loaded: Model, tmp_path: Path) -> None:
    given = c.pairs(loaded)

    found = read(c.peft(given, "unet."), loaded, tmp_path, lora_adapter_metadata='{"unet.r": 2, "unet.lora_alpha": 1}')

    for name, (_, up) in given.items():
        torch.testing.assert_close(found.low_rank[f"unet.{name}"][1], 0.5 * up)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "expected plain LoRA, got"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "which is no product of two matrices"),
        ("lora_unet_mid_block_attentions_7_proj_in.lora_down.weight", "in kohya's names, got some that diffusers"),
        ("lora_unet_mid_block.diff", "merge it into the model"),
    ],
)
def test_what_is_no_plain_adapter_is_refused(loaded: Model, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(c.kohya(c.pairs(loaded), 1.0) | {name: torch.ones(2, 16)}, loaded, tmp_path)


def test_adapters_of_layers_that_the_base_lacks_are_refused(loaded: Model, tmp_path: Path) -> None:
    down, up = torch.ones(2, 16), torch.ones(16, 2)
    other = {"mid_block.attentions.7.proj": (down, up)}
    wide = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (torch.ones(2, 99), up)}

    for given, message in ((other, "got unet.mid_block.attentions.7.proj"), (wide, r"got factors of \(2, 99\)")):
        with pytest.raises(DataError, match=message):
            read(c.peft(given, "unet."), loaded, tmp_path)
    with pytest.raises(DataError, match="expected both factors of each adapter"):
        read({n: t for n, t in c.peft(wide, "unet.").items() if "lora_A" in n}, loaded, tmp_path)


def test_weights_that_are_no_numbers_are_refused(loaded: Model, tmp_path: Path) -> None:
    x = c.changed(c.weights(loaded))
    x["conv_in.bias"] = x["conv_in.bias"] / 0

    with pytest.raises(DataError, match=r"expected finite weights, got some in unet.conv_in.bias"):
        read(x, loaded, tmp_path)


def test_a_buffer_that_is_not_the_bases_is_refused(loaded: Model, tmp_path: Path) -> None:
    x = c.changed(c.weights(loaded, TEXT), "mlp")
    ids = torch.arange(loaded.tokenizer.model_max_length)[None]

    found = read(x | {"embeddings.position_ids": ids}, loaded, tmp_path)
    assert found.left_out == {f"{TEXT}.embeddings.position_ids": "no parameter, and equal to the base's"}
    with pytest.raises(DataError, match="which no training changes"):
        read(x | {"embeddings.position_ids": ids + 1}, loaded, tmp_path)


def test_one_part_of_a_file_can_be_taken(loaded: Model, tmp_path: Path) -> None:
    x, y = c.changed(c.weights(loaded)), c.changed(c.weights(loaded, TEXT), "mlp")

    found = read(c.prefixed("unet.", x) | c.prefixed("text_encoder.", y), loaded, tmp_path, TEXT)

    assert found.components == [TEXT] and set(found.dense) == {f"{TEXT}.{n}" for n in y if "mlp" in n}
    assert set(found.left_out.values()) == {"not of text_encoder, which was asked for"}
