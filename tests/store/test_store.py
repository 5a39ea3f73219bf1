"""A result exists when its marker does and its files are as written; unfinished work is replaced; nothing else is."""

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.errors import FolderError, StoreError
from benchmark.store import Store
from benchmark.store import store as stores
from benchmark.store.maintenance import gc, verify
from benchmark.store.store import MARKER

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
    assert list(store.results()) == [KEY]


def test_an_existing_result_is_never_overwritten(store: Store) -> None:
    store.put(KEY, write, {"n": 1})

    store.put(KEY, lambda folder: (folder / "data.txt").write_text("second"), {"n": 2})  # type: ignore[arg-type,return-value]

    assert (store.path(KEY) / "data.txt").read_text() == "first"
    assert store.meta(KEY) == {"n": 1}


def test_a_writer_that_raises_leaves_nothing(store: Store) -> None:
    def broken(folder: Path) -> None:
        write(folder)
        raise OSError("disk full")

    with pytest.raises(StoreError, match="disk full"):
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


def test_what_a_killed_write_left_is_no_reason_to_refuse_a_folder(tmp_path: Path) -> None:
    """Killed between making the folder and marking it as a store."""
    (tmp_path / ".titer-store.json.0a1b2c3d").write_text("{")

    assert Store(tmp_path).open().has(KEY) is False


@pytest.fixture
def filled(store: Store) -> Store:
    """Two results, one with a folder in it."""

    def deep(folder: Path) -> None:
        write(folder)
        (folder / "step-1").mkdir()
        (folder / "step-1" / "more.bin").write_bytes(bytes(1000))

    store.put(KEY, write, {"label": "x", "cost": {"seconds": 2.5}})
    store.put("attack/y-def", deep, {"label": "y", "cost": {}})
    return store


def replace(file: Path, content: bytes) -> None:
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("path", "damage", "kind"),
    [
        ("score/x-abc/data.txt", lambda file: replace(file, b"fir"), "truncated"),
        ("score/x-abc/data.txt", lambda file: replace(file, b"First"), "altered"),
        ("score/x-abc/data.txt", lambda file: replace(file, b"first!"), "altered"),
        ("score/x-abc/data.txt", Path.unlink, "missing"),
        ("attack/y-def/step-1/more.bin", lambda file: replace(file, bytes(999) + b"1"), "altered"),
        ("attack/y-def/done.json", lambda file: replace(file, file.read_bytes().replace(b"y", b"z")), "damaged"),
        ("attack/y-def/done.json", lambda file: replace(file, b"{"), "damaged"),
        ("attack/y-def/done.json", lambda file: replace(file, b"\xff"), "damaged"),
    ],
)
def test_a_damaged_file_is_found_and_its_result_is_gone(filled: Store, path: str, damage: Any, kind: str) -> None:
    """`verify` names the file; `has` says no, so that the next run computes it; the other result stays."""
    damage(filled.root / path)

    assert [(problem.path, problem.kind) for problem in verify(filled)] == [(path, kind)]
    key = "/".join(path.split("/")[:2])
    assert [filled.has(other) for other in (key, KEY, "attack/y-def")].count(True) == 1
    assert not filled.has(key)


def test_a_damaged_result_is_replaced(filled: Store) -> None:
    (filled.path(KEY) / "data.txt").write_text("fir")

    filled.put(KEY, write, {"cost": 4})

    assert filled.has(KEY)
    assert filled.meta(KEY) == {"cost": 4}
    assert not list(verify(filled))


def test_verify_finds_an_alteration_that_hides_its_time(filled: Store) -> None:
    file = filled.path(KEY) / "data.txt"
    before = file.stat()
    file.write_text("FIRST")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert [problem.kind for problem in verify(filled)] == ["altered"]


def test_a_touched_or_copied_result_is_read_once_and_still_there(filled: Store, monkeypatch: Any) -> None:
    os.utime(filled.path(KEY) / "data.txt", (1, 1))
    assert filled.has(KEY)
    monkeypatch.setattr(stores, "sha256", None)

    assert filled.has(KEY)


def test_a_good_result_is_not_read(filled: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(stores, "sha256", None)

    assert filled.has(KEY)
    assert filled.has("attack/y-def")


def test_a_result_of_an_older_version_counts_and_verify_says_what_it_cannot_know(store: Store) -> None:
    store.path(KEY).mkdir(parents=True)
    write(store.path(KEY))
    (store.path(KEY) / MARKER).write_text(json.dumps({"cost": 3}))

    assert store.has(KEY)
    assert store.meta(KEY) == {"cost": 3}
    assert [(problem.path, problem.kind) for problem in verify(store)] == [(KEY, "unknown")]
    assert "no hashes recorded" in next(verify(store)).text


def test_a_file_that_no_run_wrote_is_named(filled: Store) -> None:
    (filled.path(KEY) / "prompts.json").write_text("[]")

    assert [(problem.path, problem.kind) for problem in verify(filled)] == [(f"{KEY}/prompts.json", "extra")]


def litter(store: Store) -> set[str]:
    """What killed runs leave."""
    (store.root / "tmp" / "0123").mkdir(parents=True)
    (store.root / "score" / "half").mkdir()
    store.beside("score/z").touch()
    return {"tmp/0123", "score/half", "score/z.lock"}


def test_gc_removes_leftovers_and_keeps_results(filled: Store) -> None:
    left = litter(filled)

    assert set(gc(filled, dry=True)) == left
    assert all((filled.root / path).exists() for path in left)
    assert set(gc(filled)) == left
    assert list(filled.results()) == ["attack/y-def", KEY]
    assert not list(verify(filled))
    assert gc(filled, keep=lambda key: key == KEY) == ["attack/y-def"]
    assert list(filled.results()) == [KEY]


def test_gc_waits_for_no_run_and_removes_nothing_under_one(filled: Store) -> None:
    left = litter(filled)
    with Store(filled.root).using(), pytest.raises(FolderError, match="got a run that uses it"):
        gc(filled)

    assert all((filled.root / path).exists() for path in left)


def test_a_lock_is_held_once_and_leaves_no_file(store: Store) -> None:
    with store.lock(KEY) as first, Store(store.root).lock(KEY) as second, store.lock("score/other") as other:
        assert (first, second, other) == (True, False, True)
        assert store.locker(KEY).startswith(f"{os.getpid()} on ")

    assert not list(store.root.glob("*/*.lock"))
    with store.lock(KEY) as again:
        assert again


def test_a_lock_file_that_was_replaced_is_not_the_lock(store: Store, monkeypatch: Any) -> None:
    """Its owner removed it after we had opened it, and a third made a new one: we must look again."""
    path, real, calls = store.beside(KEY), stores.flock, []

    def late(handle: int, how: int) -> bool:
        calls.append(handle)
        if len(calls) == 1:
            path.unlink()
            path.write_text("a third")
        return real(handle, how)

    monkeypatch.setattr(stores, "flock", late)
    with store.lock(KEY) as got:
        assert got
        assert len(calls) == 2
        assert path.exists()


def test_a_file_system_without_locks_is_no_obstacle(store: Store, monkeypatch: Any) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    with store.lock(KEY) as one, store.lock(KEY) as two:
        assert one
        assert two
    store.put(KEY, write, {"n": 1})
    assert store.has(KEY)


def titer(*words: object) -> Any:
    return CliRunner().invoke(app, ["store", *(str(word) for word in words)])


def test_the_commands_list_verify_and_clean(filled: Store) -> None:
    at = ["--store", filled.root]
    rows = json.loads(titer("ls", *at, "--json").stdout)
    assert [(row["key"], row["ok"], row["label"], row["seconds"]) for row in rows] == [
        ("attack/y-def", True, "y", None),
        (KEY, True, "x", 2.5),
    ]
    assert titer("ls", *at).stdout.splitlines()[-1].startswith("2 results")
    assert json.loads(titer("verify", *at, "--json").stdout) == []
    assert titer("verify", *at).exit_code == 0

    (filled.path(KEY) / "data.txt").write_text("wrong")

    bad = titer("verify", *at, "--json")
    assert bad.exit_code == 1
    assert [(row["path"], row["kind"]) for row in json.loads(bad.stdout)] == [(f"{KEY}/data.txt", "altered")]
    assert "altered" in titer("verify", *at).stdout
    assert [row["ok"] for row in json.loads(titer("ls", *at, "--json").stdout)] == [True, False]
    assert json.loads(titer("gc", *at, "--dry-run", "--json").stdout) == [KEY]
    assert filled.path(KEY).exists()
    assert json.loads(titer("gc", *at, "--json").stdout) == [KEY]
    assert not filled.path(KEY).exists()


def test_gc_keeps_what_a_config_needs(filled: Store) -> None:
    """Nothing here is of the preset, so all of it would go."""
    gone = titer("gc", "--store", filled.root, "--keep", "smoke", "--dry-run", "--json")

    assert set(json.loads(gone.stdout)) == {KEY, "attack/y-def"}


@pytest.mark.parametrize("what", ["ls", "verify", "gc"])
def test_no_store_is_one_line_and_2(tmp_path: Path, what: str) -> None:
    result = titer(what, "--store", tmp_path / "none")

    assert result.exit_code == 2
    assert "expected a titer store" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "none").exists()
