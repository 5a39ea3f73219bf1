"""The folder of a run's tables: whose it is."""

import hashlib
import json
from pathlib import Path

from benchmark.errors import FolderError
from benchmark.plan import Plan
from benchmark.results.published import RUN
from benchmark.store.files import empty, write_whole


def identity(plan: Plan) -> str:
    """What makes two runs the same one: the config's name and the base."""
    text = json.dumps([plan.config.raw.name, plan.config.raw.model, plan.base])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def claim_folder(folder: Path, name: str) -> None:
    """Make the folder this run's, or refuse one that holds something else.

    Raises:
        FolderError: it belongs to another run, or is not empty and no run at all.
    """
    marker = folder / RUN
    if marker.is_file():
        try:
            owner = json.loads(marker.read_text()).get("identity")
        except (json.JSONDecodeError, AttributeError) as error:
            raise FolderError(
                f"expected the JSON of a run in {marker}, got something else: choose another --out."
            ) from error
        if owner != name:
            raise FolderError(
                f"expected an empty folder or this run's own at {folder}, got another run's: choose another --out."
            )
    elif folder.exists() and (not folder.is_dir() or not empty(folder)):
        raise FolderError(f"expected an empty folder at {folder}, got files that are no run: choose another --out.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(marker, json.dumps({"identity": name}))
