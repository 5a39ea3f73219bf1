"""What a model's folder holds: its family, what is wrong with it, the hash that names it. Loads no torch, no weights.

Weights are read from safetensors only: a pickled file can run code when it is loaded.
"""

import hashlib
import json
import re
from pathlib import Path

from benchmark.errors import DataError, shown
from benchmark.model.families import Family, families, unsupported
from benchmark.model.headers import tensors as tensors
from benchmark.model.layout import check_config, check_flow_schedule, check_parts, check_schedule, check_tokenizer
from benchmark.model.layout import read_json as read_json

INDEX = "model_index.json"
WEIGHT_FILE = re.compile(r"(diffusion_pytorch_model|model)(-\d{5}-of-\d{5})?\.safetensors")
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
VARIANT = re.compile(r"(diffusion_pytorch_model|model)(\.[\w-]+)((-\d{5}-of-\d{5})?\.safetensors)")


class UnsupportedError(DataError):
    """A model is of a family that titer does not draw with."""


def family_of(folder: Path) -> Family:
    """The family of a model's folder.

    Raises:
        UnsupportedError: there is none for its pipeline.
        DataError: it has no `model_index.json`.
    """
    if not (folder / INDEX).is_file():
        parts = families()["StableDiffusionPipeline"].folders
        lacking = ", ".join([*(part for part in parts if not (folder / part).is_dir()), INDEX])
        raise DataError(
            f"expected a pipeline's folder with {', '.join(parts)} and {INDEX} at {folder}, which lacks {lacking}: "
            "save it with pipeline.save_pretrained."
        )
    index = read_json(folder / INDEX)
    found = families().get(str(index.get("_class_name")))
    if found is None:
        raise UnsupportedError(f"{unsupported(index, folder)}: choose one of `titer list models`, or a folder.")
    return found


def check(folder: Path) -> None:
    """Refuse a folder with which no run could end.

    Raises:
        DataError: one line on the first fault.
    """
    family = family_of(folder)
    missing = [part for part in family.folders if not (folder / part).is_dir()]
    if missing:
        raise DataError(
            f"expected a {family.pipelines[0]} folder with {', '.join(family.folders)} and {INDEX} at {folder}, "
            f"which lacks {', '.join(missing)}: save it with pipeline.save_pretrained."
        )
    check_parts(folder, read_json(folder / INDEX), family.folders)
    for part in family.parts:
        check_config(folder / part / "config.json")
        check_weights(folder / part)
    for part in family.settings:
        if part.startswith("tokenizer"):
            check_tokenizer(folder / part)
    for part in family.present(folder):
        check_parts(folder, read_json(folder / INDEX), (part,))
        if part.startswith("tokenizer"):
            check_tokenizer(folder / part)
        else:
            check_config(folder / part / "config.json")
            check_weights(folder / part)
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    if family.is_flow:
        check_flow_schedule(folder, schedule, family.schedulers)
    else:
        check_unet(folder)
        check_schedule(folder, schedule)


def check_unet(folder: Path) -> None:
    """Refuse a U-Net that reads more than it answers.

    Raises:
        DataError: it does.
    """
    unet = read_json(folder / "unet" / "config.json")
    channels = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if channels[0] != channels[1]:
        raise DataError(
            f"expected a text-to-image U-Net in {folder}, got one of {channels[0]} channels in and {channels[1]} out: "
            "inpainting and image-to-image models are not supported."
        )


def check_weights(part: Path) -> None:
    """Refuse a part without whole safetensors.

    Raises:
        DataError: there are none, or one is cut off.
    """
    files = weight_files(part)
    if not files:
        others = sorted(file.name for file in part.iterdir() if file.suffix in (*PICKLED, ".safetensors"))
        pickled = any(name.endswith(PICKLED) for name in others)
        got = f"{', '.join(others[:3])}{', pickled, which can run code when loaded' * pickled}" if others else "none"
        if variant := next((name for name in others if VARIANT.fullmatch(name)), None):
            plain = VARIANT.sub(r"\1\3", variant)
            raise DataError(
                f"expected {plain} in {part}, got {variant}, which is a variant's: give it that name, or save the "
                "pipeline again without `variant=`."
            )
        raise DataError(
            f"expected safetensors weights in {part}, got {got}: take a revision that has them, or load the model "
            "where you trust it and save it with pipeline.save_pretrained."
        )
    for index in part.glob("*.safetensors.index.json"):
        shards = read_json(index).get("weight_map")
        listed = list(shards.values()) if isinstance(shards, dict) else [None]
        if named := [name for name in listed if name not in [file.name for file in files]]:
            raise DataError(f"expected the shards that {index} names, got none of {shown(named[0])}: copy it again.")
    for file in files:
        tensors(file)


def weight_files(part: Path) -> list[Path]:
    """The safetensors that diffusers loads from a part; not the fp16 or non_ema ones beside them."""
    return sorted(file for file in part.iterdir() if file.is_file() and WEIGHT_FILE.fullmatch(file.name))


def fingerprint(folder: Path) -> str:
    """Thirty-two hex digits over the contents of a model's files; paths outside the folder do not enter."""
    family, digest = family_of(folder), hashlib.sha256()
    for part in (*family.folders, *family.present(folder)):
        weights = weight_files(folder / part)
        for file in sorted((folder / part).rglob("*")):
            plain = file.suffix in (".json", ".txt", ".jinja") and not re.search(r"\.index\..+\.json$", file.name)
            if file.is_file() and (plain or file in weights):
                digest.update(str(file.relative_to(folder)).encode())
                digest.update(content(file))
    if family.flags:
        index = read_json(folder / INDEX)
        digest.update(json.dumps([index.get(flag) for flag in family.flags]).encode())
    return digest.hexdigest()[:32]


def content(file: Path) -> bytes:
    """The SHA-256 of a file. A large one in the hub's cache has it for its name."""
    real = file.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return bytes.fromhex(real.name)
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()
