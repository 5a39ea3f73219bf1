"""What results look like on disk: deltas, images and scores. Safetensors, parquet and JSON; nothing is unpickled.

delta.safetensors                  dense differences by parameter name
pytorch_lora_weights.safetensors   adapters in diffusers' names, alpha folded in; `load_lora_weights` takes it
guard.json                         what acts while a model draws: the defense, and its guard's fields
modules.safetensors                extra layers that a guard puts on, their tensors by name
learned_embeds.safetensors         words that an attack has learned; `load_textual_inversion` takes it
prompts.json                       prompts that an attack has found
search.json                        what tells whether that search converged, a number for each of them
images.parquet                     lossless PNG; the `datasets` library reads the `image` column as images
features.safetensors               one vector for each image
scores.parquet                     one row for each image, one column for each number; one row in all for a distance
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmark.types import Delta, Snapshot

DENSE, ADAPTER = "delta.safetensors", "pytorch_lora_weights.safetensors"
WORDS, PROMPTS, SEARCH = "learned_embeds.safetensors", "prompts.json", "search.json"
GUARD, MODULES = "guard.json", "modules.safetensors"
IMAGES, FEATURES, SCORES = "images.parquet", "features.safetensors", "scores.parquet"


def save_delta(folder: Path, delta: Delta) -> None:
    """Write a delta; an empty one writes an empty file, so that its presence is certain."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in delta.dense.items()}, folder / DENSE)
    if delta.low_rank:
        tensors = {}
        for name, (down, up) in delta.low_rank.items():
            tensors[f"{name}.lora_A.weight"] = down.contiguous()
            tensors[f"{name}.lora_B.weight"] = up.contiguous()
        save_file(tensors, folder / ADAPTER)


def save_guard(folder: Path, defense: str, fields: Mapping[str, Any], modules: Mapping[str, Tensor]) -> None:
    """Write a guard: the defense whose guard it is, its fields, and the extra layers that it puts on, if any."""
    (folder / GUARD).write_text(json.dumps({"defense": defense, "fields": dict(fields)}, indent=1))
    if modules:
        save_file({name: tensor.contiguous() for name, tensor in modules.items()}, folder / MODULES)


def load_guard(folder: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]] | None:
    """Read a guard's defense, fields and extra layers; None where there is none."""
    if not (folder / GUARD).is_file():
        return None
    found = json.loads((folder / GUARD).read_text())
    modules = load_file(folder / MODULES) if (folder / MODULES).is_file() else {}
    return str(found["defense"]), dict(found["fields"]), modules


def save_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Write what an attack has at one budget."""
    save_delta(folder, snapshot.delta)
    if snapshot.tokens:
        save_file({word: vector.contiguous() for word, vector in snapshot.tokens.items()}, folder / WORDS)
    if snapshot.prompts:
        (folder / PROMPTS).write_text(json.dumps(snapshot.prompts, indent=1))
    if snapshot.search:
        (folder / SEARCH).write_text(json.dumps(dict(snapshot.search), indent=1))


def load_snapshot(folder: Path) -> Snapshot:
    """Read what an attack had at one budget; its number of steps is the folder's name."""
    tokens = load_file(folder / WORDS) if (folder / WORDS).exists() else {}
    prompts = json.loads((folder / PROMPTS).read_text()) if (folder / PROMPTS).exists() else []
    told = json.loads((folder / SEARCH).read_text()) if (folder / SEARCH).exists() else {}
    search = {name: tuple(values) for name, values in told.items()}
    steps = int(folder.name.rpartition("-")[2])
    return Snapshot(steps=steps, delta=load_delta(folder), tokens=tokens, prompts=tuple(prompts), search=search)


def load_delta(folder: Path) -> Delta:
    """Read a delta."""
    dense, low_rank = load_file(folder / DENSE), {}
    if (folder / ADAPTER).exists():
        tensors = load_file(folder / ADAPTER)
        names = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith(".lora_A.weight")]
        low_rank = {n: (tensors[f"{n}.lora_A.weight"], tensors[f"{n}.lora_B.weight"]) for n in names}
    return Delta(dense=dense, low_rank=low_rank)


@dataclass(frozen=True)
class Gallery:
    """Generated images with what made them: uint8 `(N, 3, H, W)`, and N prompt ids, prompts, numbers and seeds."""

    images: Tensor
    prompt_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    numbers: tuple[int, ...]
    seeds: tuple[int, ...]


def save_images(folder: Path, gallery: Gallery) -> None:
    """Write a gallery as one parquet file."""
    pixels = gallery.images.permute(0, 2, 3, 1).numpy()
    images = [
        {"bytes": png(p), "path": f"{i}-{n}.png"}
        for p, i, n in zip(pixels, gallery.prompt_ids, gallery.numbers, strict=True)
    ]
    table = pa.table(
        {
            "image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "prompt_id": list(gallery.prompt_ids),
            "prompt": list(gallery.prompts),
            "number": list(gallery.numbers),
            "seed": list(gallery.seeds),
        }
    )
    features = {name: {"dtype": str(table.schema.field(name).type), "_type": "Value"} for name in table.column_names}
    features["image"] = {"_type": "Image"}
    known = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": known}), folder / IMAGES)


def png(pixels: np.ndarray) -> bytes:
    """Lossless PNG of uint8 `(H, W, 3)`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def load_images(folder: Path) -> Gallery:
    """Read a gallery."""
    table = pq.read_table(folder / IMAGES).to_pydict()
    pixels = [np.array(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"]]
    return Gallery(
        images=torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
        prompt_ids=tuple(table["prompt_id"]),
        prompts=tuple(table["prompt"]),
        numbers=tuple(table["number"]),
        seeds=tuple(table["seed"]),
    )


def save_scores(folder: Path, gallery: Gallery, columns: Mapping[str, Sequence[float]]) -> None:
    """Write per-image numbers; NaN is a missing number."""
    pq.write_table(
        pa.table(
            {
                "prompt_id": list(gallery.prompt_ids),
                "number": list(gallery.numbers),
                **{k: list(v) for k, v in columns.items()},
            }
        ),
        folder / SCORES,
    )


def load_values(folder: Path) -> np.ndarray:
    """The `value` of each image: `(N,)`."""
    found: np.ndarray = pq.read_table(folder / SCORES, columns=["value"])["value"].to_numpy()
    return found


def save_features(folder: Path, features: Tensor) -> None:
    """Write features `(N, D)`."""
    save_file({"features": features.contiguous()}, folder / FEATURES)


def load_features(folder: Path) -> Tensor:
    """Read features `(N, D)`."""
    return load_file(folder / FEATURES)["features"]


def save_numbers(folder: Path, numbers: Mapping[str, float]) -> None:
    """Write the numbers of one distance: a table of one row."""
    pq.write_table(pa.table({name: [float(value)] for name, value in numbers.items()}), folder / SCORES)
