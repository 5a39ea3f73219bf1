"""Attacks of NSFW suites that a killed run left in a store although their images are scored; no plan is needed.

An attack's marker says whether its files are to go (`sweep`). They are no longer needed when every budget that it
reached was drawn, or attacked further, and all that was drawn is scored: as far as the store knows, for it cannot know
which metrics a config would still ask for. Such a metric computes the attack again.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from benchmark.errors import StoreError
from benchmark.store import Store
from benchmark.store.store import MARKER

KEPT = ("losses.csv",)  # what stays of an attack whose files may go
Markers = dict[str, dict[str, Any]]


def markers(store: Store) -> Markers:
    """The meta of every finished result."""
    found = Markers()
    for key in store.results():
        try:
            found[key] = store.meta(key)
        except StoreError:  # damaged: `gc` removes it
            continue
    return found


def attacks(store: Store) -> Iterator[str]:
    """The keys of attacks whose files may go, and of those whose going was interrupted."""
    known = markers(store)
    children = defaultdict[str, list[str]](list)
    for key, meta in known.items():
        for parent in set(meta.get("identity_of", {}).get("parents", {}).values()):
            children[parent].append(key)
    for key, meta in known.items():
        may_go = meta.get("withheld") or (meta.get("sweep") and is_scored(key, known, children))
        if key.startswith("attack/") and may_go and files(store, key):
            yield key


def is_scored(attack: str, known: Markers, children: dict[str, list[str]]) -> bool:
    """True if all that was made from an attack is scored, and something was made at each of its budgets."""
    below = [(child, known[child]["identity_of"]["fields"]) for child in children[attack]]
    reached = {str(fields.get("budget", fields.get("start", ""))) for _, fields in below}
    is_step = bool(below) and all("start" in fields for _, fields in below)  # only other attacks start from it
    if not below or not (is_step or set(known[attack].get("budgets", {})) <= reached):
        return False
    return all(
        is_scored(child, known, children)
        if child.startswith("attack/")
        else any(key.startswith("score/") for key in children[child])
        for child, _ in below
    )


def files(store: Store, key: str) -> list[str]:
    """The files of a result that are not kept."""
    folder = store.path(key)
    found = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() or file.is_symlink())
    return sorted(name for name in found if name not in (*KEPT, MARKER))


def sweep(store: Store, *, dry: bool) -> list[str]:
    """Delete those files, or only say which; their paths below the store."""
    gone = []
    for key in list(attacks(store)):
        gone += [f"{key}/{name}" for name in files(store, key)]
        if not dry:
            store.shrink(key, KEPT, withheld=True)
    return gone
