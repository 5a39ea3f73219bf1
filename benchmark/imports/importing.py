"""`titer import`: a source and a base -> a folder with the change and `import.json`."""

import json
import shutil
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from benchmark.config.imported import NOTE, SCHEMA
from benchmark.errors import DataError, FolderError, clipped
from benchmark.imports.compare import Values
from benchmark.imports.look import look
from benchmark.imports.norms import by_scope
from benchmark.imports.sources import find as find_source
from benchmark.imports.unchanged import check_pipeline
from benchmark.model import bases, find
from benchmark.store.artifacts import save_delta
from benchmark.store.files import sha256, share
from benchmark.types import Delta

GATED = {"spm", "unhype", "receler"}  # methods that look at the prompt before they change anything
MADE_ON = "base_model_id"  # in the header of ESD's newest trainer
PROMPTED = "looks at the prompt first, which merged weights do not: this is another method"

for library in (diffusers_logging, transformers_logging):
    library.disable_progress_bar()  # the base is read in seconds


def run(
    source: str,
    out: Path,
    *,
    base: str,
    concept: str,
    method: str,
    component: str = "",
    values: Values | None = None,
) -> dict[str, Any]:
    """Import a checkpoint into a new folder, and return what stands in its `import.json`.

    Args:
        source: see `benchmark.imports.sources`.
        out: a new or empty folder.
        base: the model that it is a change of.
        concept: what it erases, as the config will name it.
        method: what it was trained by.
        component: the part that it is of; by default as its names say.
        values: what the tensors are; by default as their norms say.

    Raises:
        DataError: the source cannot be read, or does not fit the base.
        FolderError: there is something in `out`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FolderError(f"expected an empty folder at {out}, got files: choose another -o.")
    given, found = find_source(source), find(base, "download")
    assert found.folder is not None
    if given.index is not None:
        check_pipeline(given.index, found.folder)
    model = bases.load(found.folder)
    seen = look(given, model, component, values)
    check_base(seen.header.get(MADE_ON, ""), base)
    gated = method.lower() in GATED
    note = {
        "schema": SCHEMA,
        "titer": version("titer"),
        "concept": concept,
        "method": f"{method} (merged)" if gated else method,
        "merged": gated,
        "source": {"address": given.address, "sha256": given.sha256, "files": given.hashes},
        "base": {"model": base, "sha256": found.base},
        "format": ", ".join(dict.fromkeys(seen.formats)),
        "values": ", ".join(dict.fromkeys(seen.values)),
        "components": seen.components,
        "dtype": dict(seen.dtypes),
        "matched": seen.matched,
        "missing": seen.missing,
        "unexpected": [],  # a name that fits nowhere ends an import
        "left_out": seen.left_out,
        "equal": None if seen.low_rank else seen.equal / seen.matched,
        "norms": by_scope(model, seen.delta),
        "warnings": seen.warnings + [f"{method} {PROMPTED}"] * gated,
    }
    write(out, seen.delta, note)
    return note


def check_base(told: str, base: str) -> None:
    """Refuse a file whose header names another hub id than the base is; a folder's origin nobody knows.

    Raises:
        DataError: it does.
    """
    place, _ = bases.parse(base)
    if told and bases.HUB_ID.fullmatch(place) and told.partition("@")[0].lower() != place.lower():
        raise DataError(f"expected a change of {place}, got one of {clipped(told)} by its header: choose that --base.")


def write(out: Path, delta: Delta, note: dict[str, Any]) -> None:
    """Write the folder, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        save_delta(temporary, delta)
        files = sorted(temporary.iterdir())
        note["files"] = {file.name: {"sha256": sha256(file), "size": file.stat().st_size} for file in files}
        (temporary / NOTE).write_text(json.dumps(note, indent=1))
        share(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
