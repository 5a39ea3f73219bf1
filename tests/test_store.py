"""A result exists when its marker does; unfinished work is replaced; nothing is overwritten."""

from pathlib import Path

import pytest

from benchmark.errors import FolderError, StoreError
from benchmark.store import MARKER, Store

KEY = "score/x-abc"


def write(folder: Path) -> None:
    (folder / "data.txt").write_text("first")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def test_put_then_has_then_meta(store: Store) -> None:
    assert not store.has(KEY)

    store.put(KEY, write, {"cost": 3})

    assert store.has(KEY)
    assert store.meta(KEY) == {"cost": 3}
    assert (store.path(KEY) / "data.txt").read_text() == "first"
    assert list(store.keys()) == [KEY]


def test_an_existing_result_is_never_overwritten(store: Store) -> None:
    store.put(KEY, write, {"n": 1})

    store.put(KEY, lambda folder: (folder / "data.txt").write_text("second"), {"n": 2})  # type: ignore[arg-type,return-value]

    assert (store.path(KEY) / "data.txt").read_text() == "first"
    assert store.meta(KEY) == {"n": 1}


def test_a_writer_that_raises_leaves_nothing(store: Store) -> None:
    def broken(folder: Path) -> None:
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.put(KEY, broken, {})

    assert not store.has(KEY)
    assert not store.path(KEY).exists()
    assert not list((store.root / "tmp").iterdir())


def test_a_folder_without_marker_is_unfinished_and_is_replaced(store: Store) -> None:
    store.path(KEY).mkdir(parents=True)
    (store.path(KEY) / "half.txt").write_text("half")

    assert not store.has(KEY)
    store.put(KEY, write, {})

    assert sorted(p.name for p in store.path(KEY).iterdir()) == ["data.txt", MARKER]


def test_a_missing_result_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError, match="expected a finished result"):
        store.meta("score/none")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")

    with pytest.raises(FolderError, match="expected a titer store or an empty folder"):
        Store(tmp_path).open()
