"""What the settings in a model's folder may say. Loads no torch: a folder is refused before anybody builds it.

A folder can name a class of any package, or code of its own; diffusers would import it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.errors import DataError, clipped, shown
from benchmark.given.files import contents, is_file

JSON_BYTES = 64 << 20
LIBRARIES = {
    "diffusers": re.compile(r"[A-Z]\w*"),
    "transformers": re.compile(r"(CLIP|T5)\w*|Qwen3ForCausalLM|Qwen2Tokenizer(Fast)?"),
}
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
PREDICTIONS = ("epsilon", "v_prediction")
SIZES = {"block_out_channels", "hidden_size", "num_attention_heads", "model_type", "architectures"}
COUNTS = (
    *("block_out_channels", "layers_per_block", "hidden_size", "vocab_size", "intermediate_size"),
    *("num_layers", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "d_model", "d_ff"),
)
NUMBERS = {"beta_start": (0.0, 1.0), "beta_end": (0.0, 1.0), "num_train_timesteps": (1, 100_000)}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: it is missing or something else.
    """
    try:
        found = json.loads(contents(file, JSON_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"expected JSON in {file}, got {type(error).__name__}: save the pipeline again.") from error
    if not isinstance(found, dict):
        raise DataError(f"expected a JSON object in {file}, got {type(found).__name__}: save the pipeline again.")
    return found


def check_parts(folder: Path, index: Mapping[str, Any], parts: tuple[str, ...]) -> None:
    """Refuse parts that are of other packages than these, or bring code of their own.

    Raises:
        DataError: the first of them.
    """
    for part in parts:
        named = index.get(part)
        library, cls = named if isinstance(named, list) and len(named) == 2 else (None, None)
        pattern = LIBRARIES.get(library) if isinstance(library, str) else None
        if not (pattern and isinstance(cls, str) and pattern.fullmatch(cls)):
            raise DataError(
                f"expected a class of diffusers, or CLIP's, T5's or Qwen's of transformers, for {part} in {folder}, "
                f"got {shown(named)}: save the pipeline again."
            )
        for name in ("config.json", "tokenizer_config.json"):
            if is_file(folder / part / name):
                config = read_json(folder / part / name)
                check_class(folder / part / name, config, cls)


def check_class(file: Path, config: Mapping[str, Any], cls: str) -> None:
    """Refuse a part whose settings name code in the folder, or another class than the index does.

    Raises:
        DataError: either.
    """
    if "auto_map" in config:
        raise DataError(f"expected a model without code of its own, got `auto_map` in {file}: it is never run.")
    own = config.get("_class_name", cls)
    if own != cls:
        raise DataError(f"expected settings of {cls} in {file}, got {shown(own)}: save the pipeline again.")


def check_tokenizer(part: Path) -> None:
    """Refuse a tokenizer without words.

    Raises:
        DataError: a file is missing or broken.
    """
    if is_file(part / "tokenizer.json"):
        words = read_json(part / "tokenizer.json").get("model", {})
    elif is_file(part / "vocab.json") and is_file(part / "merges.txt"):
        words = {"vocab": read_json(part / "vocab.json")}
    else:
        raise DataError(
            f"expected tokenizer.json, or vocab.json and merges.txt, in {part}, got neither: save the pipeline again."
        )
    if not isinstance(words, dict) or not words.get("vocab"):
        raise DataError(f"expected words in the tokenizer {part}, got none: save the pipeline again.")


def check_schedule(folder: Path, schedule: Mapping[str, Any]) -> None:
    """Refuse a noise schedule that cannot be computed, or that no method here is made for.

    Raises:
        DataError: the first fault.
    """
    prediction = schedule.get("prediction_type", PREDICTIONS[0])
    if prediction not in PREDICTIONS or schedule.get("rescale_betas_zero_snr"):
        got = "a terminal SNR of zero" if prediction in PREDICTIONS else f"prediction_type {shown(prediction)}"
        raise DataError(
            f"expected a schedule for {' or '.join(PREDICTIONS)} in {folder}, got {got}: choose another model."
        )
    for name, (low, high) in NUMBERS.items():
        value = schedule.get(name)
        whole = isinstance(value, int) or (isinstance(value, float) and name != "num_train_timesteps")
        if value is not None and (not whole or isinstance(value, bool) or not low <= value <= high):
            raise DataError(
                f"expected {name} from {low} to {high} in the schedule of {folder}, got {shown(value)}: mend it."
            )
    if schedule.get("beta_schedule", SCHEDULES[0]) not in SCHEDULES:
        known, got = ", ".join(SCHEDULES), shown(schedule["beta_schedule"])
        raise DataError(f"expected a beta_schedule of {known} in {folder}, got {got}: choose another model.")
    betas = schedule.get("trained_betas")
    if betas is not None and not (
        isinstance(betas, list) and betas and all(isinstance(b, float) and 0 < b < 1 for b in betas)
    ):
        raise DataError(f"expected numbers from 0 to 1 as trained_betas in {folder}, got {clipped(shown(betas))}.")


def check_flow_schedule(folder: Path, schedule: Mapping[str, Any], classes: tuple[str, ...]) -> None:
    """Refuse a scheduler that is none of these classes, or that ends before the image.

    Raises:
        DataError: what it is.
    """
    got = schedule.get("_class_name")
    if got not in classes or schedule.get("shift_terminal"):
        ends = f"{got} with shift_terminal" if got in classes else shown(got)
        raise DataError(f"expected the scheduler {classes[0]} in {folder}, got {ends}: choose another model.")


def check_config(file: Path) -> None:
    """Refuse the settings of weights without a size, or with sizes that nobody has: each would be built.

    Raises:
        DataError: the first fault.
    """
    config = read_json(file)
    for name in COUNTS:
        value = config.get(name)
        sizes = value if isinstance(value, list) else [1 if value is None else value]
        if not all(type(size) is int and 0 < size < 1_000_000 for size in sizes) or len(sizes) > 32:
            raise DataError(f"expected {name} of whole numbers below 1,000,000 in {file}, got {shown(value)}: mend it.")
    if not SIZES & {name for name, value in config.items() if value is not None}:
        raise DataError(f"expected the sizes of a model in {file}, got none: save the pipeline again.")
