"""A store as it was at one moment: for tables and reports, which ask for each result many times."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from benchmark.errors import StoreError
from benchmark.store import Store
from benchmark.store.marker import digest


class FrozenStore(Store):
    """The results of some keys; the marker of each was read once.

    Their meta lacks `identity_of`, which is large. What was not finished then does not exist here.
    """

    def __init__(self, store: Store, keys: Iterable[str]) -> None:
        super().__init__(store.root)
        self.markers: dict[str, dict[str, Any]] = {}
        for key in store.among(keys):
            with suppress(StoreError):
                marker = store.marker(key)
                if store.whole(key, marker.get("files", {})):
                    marker.pop("identity_of", None)
                    self.markers[key] = marker

    def has(self, key: str) -> bool:
        """True for what was finished."""
        return key in self.markers

    def marker(self, key: str) -> dict[str, Any]:
        """The marker of what was finished.

        Raises:
            StoreError: it was not.
        """
        if key not in self.markers:
            raise StoreError(f"expected a finished result {key} in {self.root}, found none: run it again.")
        return self.markers[key]

    @property
    def codes(self) -> dict[str, dict[str, str]]:
        """What was kept of the code behind each result, by key."""
        return {key: marker["code"] for key, marker in self.markers.items() if marker.get("code")}

    @property
    def state(self) -> str:
        """A hash over what was finished: the same results have the same."""
        found = hashlib.sha256()
        for key, marker in sorted(self.markers.items()):
            found.update(f"{key} {marker.get('sha256') or digest(marker)}\n".encode())
        return found.hexdigest()
