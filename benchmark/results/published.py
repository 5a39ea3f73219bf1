"""What the tables of a run were made from, noted in its run.json: what would be the same is not made again.

state     hash of all that the tables say: titer's code, libraries, config, plan, results in the store, failures
inputs    hash of what decides the plan: titer's code, libraries, config, cards, base; empty if something else does
results   hash of the results in the store
reads     size and time of files whose content is in a judge's name
tables    hash of every file that was written

With the last four a finished run is known without planning it, which would load torch. Importing this loads none.
"""

import csv
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.config import config as configs
from benchmark.config.registry import FOLDERS, PluginKind, builtin
from benchmark.data import load_concept
from benchmark.errors import TiterError
from benchmark.model import bases
from benchmark.store import Store
from benchmark.store.files import sha256
from benchmark.store.frozen import FrozenStore

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("titer", "torch", "diffusers", "transformers", "peft", "open_clip_torch", "pandas", "numpy")
SOURCES = ("benchmark", "defenses", "attacks", "metrics", "leaderboards")
WRITTEN = (".py", ".j2", ".css", ".js")
RUN, RECORDS, LEADERBOARD = "run.json", "records.csv", "leaderboard.parquet"


@dataclass(frozen=True)
class Finished:
    """A run that is done, with its tables as they would be written again."""

    leaderboard: "pd.DataFrame"
    tasks: int
    folder: Path


def hashed(*parts: Any) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of what decides numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@cache
def code() -> str:
    """A hash of titer's own code, as it is on the disk."""
    root = Path(__file__).parents[2]
    files = sorted(file for name in SOURCES for file in (root / name).rglob("*") if file.suffix in WRITTEN)
    return hashed([[str(file.relative_to(root)), sha256(file)] for file in files])


def inputs(source: str, only: str, base: str) -> str:
    """A hash of what decides the plan of a config; empty if that is not all known: own plug-ins, or an NSFW suite.

    Raises:
        InputError: there is no such config, or a card is unreadable.
    """
    raw = configs.Raw.model_validate(configs.read(source))
    listed = {kind: getattr(raw, FOLDERS[kind]) for kind in FOLDERS}
    named = [name for item in raw.concepts for name in configs.members(item)]
    named += [*(item["develop"] for item in raw.attacks if isinstance(item, dict) and "develop" in item)]
    if raw.adaptation:
        named.append(raw.adaptation.subject)
    cards = [load_concept(name, model=raw.model) for name in named]
    if raw.adaptation:
        listed["attack"], listed["metric"] = (*raw.attacks, raw.adaptation.attack), (*raw.metrics, raw.adaptation.judge)
    if any(card.kind == "nsfw" for card in cards) or any(
        is_foreign(kind, item) for kind in listed for item in listed[kind]
    ):
        return ""
    return hashed(code(), versions(), raw.model_dump(mode="json"), only, base, [repr(card) for card in cards])


def is_foreign(kind: PluginKind, item: str | dict[str, Any]) -> bool:
    """True for an item of a config that uses more than titer's own plug-ins, or may name a file."""
    fields = {"use": item} if isinstance(item, str) else item
    parts = str(fields.get("use", "")).removeprefix("search:").replace(">", "+").split("+")
    return any(part not in builtin(kind) for part in parts) or any(map(may_exist, fields.values()))


def may_exist(value: Any) -> bool:
    """True for a text that may be the name of a file."""
    try:
        return isinstance(value, str) and bool(value) and Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return True


def read(folder: Path) -> dict[str, Any]:
    """What is noted in a run's folder; nothing if there is nothing."""
    try:
        found = json.loads((folder / RUN).read_text())["published"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def tables(folder: Path) -> dict[str, str]:
    """The hash of each file of a run's folder and of its report, less run.json itself."""
    files = [*folder.iterdir(), *(folder / "report").glob("*")]
    kept = sorted(file for file in files if file.is_file() and file.name != RUN and not file.name.startswith("."))
    return {str(file.relative_to(folder)): sha256(file) for file in kept}


def are_whole(folder: Path, noted: Mapping[str, str]) -> bool:
    """True if every noted file is there as it was written."""
    try:
        return bool(noted) and all(sha256(folder / name) == found for name, found in noted.items())
    except OSError:
        return False


def stats(files: Iterable[str]) -> dict[str, list[int]]:
    """Size and time of files."""
    found = {name: Path(name).stat() for name in files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}


def again(source: str, only: str, out: Path | None, store: Path) -> Finished | None:
    """The finished run of a config, if planning and running it would change nothing; None if that is not certain."""
    try:
        raw = configs.Raw.model_validate(configs.read(source))
        folder = out or Path("runs") / raw.name
        noted = read(folder)
        if not noted.get("inputs") or stats(noted["reads"]) != noted["reads"]:
            return None
        if not are_whole(folder, noted["tables"]):
            return None
        if noted["inputs"] != inputs(source, only, bases.find(raw.model, "cached").base):
            return None
        with (folder / RECORDS).open(newline="") as file:
            keys = [row["key"] for row in csv.DictReader(file)]
        if FrozenStore(Store(store), keys).state != noted["results"]:
            return None
    except (TiterError, OSError, ValueError, KeyError, TypeError):
        return None
    return Finished(leaderboard(folder), len(keys), folder)


def leaderboard(folder: Path) -> "pd.DataFrame":
    """The leaderboard of a run's folder, with the types that it had."""
    import pandas as pd

    return pd.read_parquet(folder / LEADERBOARD)
