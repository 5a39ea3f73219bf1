"""A result exists when its marker does and its files are as written; unfinished work is replaced; nothing else is."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.errors import FolderError, StoreError
from benchmark.plan.task import canonical
from benchmark.store import Store, locks
from benchmark.store import marker as markers
from benchmark.store import store as stores
from benchmark.store.maintenance import gc, repair, verify
from benchmark.store.store import MARKER

KEY, OTHER, LARGE = f"score/x-{'ab' * 16}", f"attack/y-{'cd' * 16}", f"defend/z-{'ef' * 16}"


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
    store.put(OTHER, deep, {"label": "y", "cost": {}})
    return store


def replace(file: Path, content: bytes) -> None:
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("path", "damage", "kind"),
    [
        (f"{KEY}/data.txt", lambda file: replace(file, b"fir"), "truncated"),
        (f"{KEY}/data.txt", lambda file: replace(file, b"First"), "altered"),
        (f"{KEY}/data.txt", lambda file: replace(file, b"first!"), "altered"),
        (f"{KEY}/data.txt", Path.unlink, "missing"),
        (f"{OTHER}/step-1/more.bin", lambda file: replace(file, bytes(999) + b"1"), "altered"),
        (f"{OTHER}/done.json", lambda file: replace(file, file.read_bytes().replace(b"y", b"z")), "damaged"),
        (f"{OTHER}/done.json", lambda file: replace(file, b"{"), "damaged"),
        (f"{OTHER}/done.json", lambda file: replace(file, b"\xff"), "damaged"),
    ],
)
def test_a_damaged_file_is_found_and_its_result_is_gone(filled: Store, path: str, damage: Any, kind: str) -> None:
    """`verify` names the file; `has` says no, so that the next run computes it; the other result stays."""
    damage(filled.root / path)

    assert [(problem.path, problem.kind) for problem in verify(filled)] == [(path, kind)]
    key = "/".join(path.split("/")[:2])
    assert [filled.has(other) for other in (key, KEY, OTHER)].count(True) == 1
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


@pytest.fixture
def large(filled: Store) -> Path:
    """The large file of a third result."""
    filled.put(LARGE, lambda folder: replace(folder / "weights.bin", bytes(stores.SMALL + 1)), {})
    return filled.path(LARGE) / "weights.bin"


def test_a_touched_or_copied_result_is_read_once_and_still_there(filled: Store, large: Path, monkeypatch: Any) -> None:
    os.utime(large, (1, 1))
    assert filled.has(LARGE)
    monkeypatch.setattr(stores, "sha256", None)

    assert filled.has(LARGE)


def test_a_good_large_result_is_not_read_and_a_small_one_once(filled: Store, large: Path, monkeypatch: Any) -> None:
    assert filled.has(KEY)
    monkeypatch.setattr(stores, "sha256", None)

    assert filled.has(LARGE)
    assert filled.has(KEY)


def hide(file: Path) -> None:
    """Change one bit, as a disk does: size and time stay."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_rotten_bits_of_a_small_file_are_found_by_every_run(filled: Store) -> None:
    hide(filled.path(KEY) / "data.txt")

    assert not Store(filled.root).has(KEY)
    assert Store(filled.root).finished([KEY, OTHER]) == {OTHER}


def test_repair_removes_what_gc_cannot_know_and_the_next_run_computes_it(filled: Store, large: Path) -> None:
    hide(large)
    assert gc(filled).gone == []
    assert titer("verify", "--store", filled.root).exit_code == 1

    repaired = titer("verify", "--repair", "--store", filled.root, "--json")

    assert repaired.exit_code == 0
    assert [row["path"] for row in json.loads(repaired.stdout)] == [f"{LARGE}/weights.bin"]
    assert not large.parent.exists()
    assert not list(verify(filled))
    assert list(filled.results()) == [OTHER, KEY]


def identified(number: int) -> tuple[str, dict[str, Any]]:
    """A key and the identity that it is the hash of, with all that JSON can hold."""
    texts = ['a "quoted" word', "comma, colon: brace} [", "é\\"] if number % 2 else ["plain, text: here"]
    identity = {"base": "b", "concept": [1, None, [["x", "y"]]], "fields": {"lr": 1e-05, "on": True}, "kind": "score"}
    identity |= {"parents": {"images": KEY}, "plugin": "x", "prompts": texts, "schema": 1, "seed": number, "version": 2}
    return f"score/x-{hashlib.sha256(canonical(identity).encode()).hexdigest()[:32]}", identity


def test_two_results_that_changed_places_are_no_results(store: Store) -> None:
    """Each is whole, but the key that its identity has is the other's."""
    (one, first), (two, second) = identified(1), identified(2)
    store.put(one, write, {"identity_of": first})
    store.put(two, write, {"identity_of": second})
    assert store.finished([one, two]) == {one, two}

    store.path(one).rename(store.root / "aside")
    store.path(two).rename(store.path(one))
    (store.root / "aside").rename(store.path(two))

    assert store.finished([one, two]) == set()
    with pytest.raises(StoreError, match="got that of another key"):
        store.meta(one)
    assert {(problem.key, problem.kind) for problem in verify(store)} == {(one, "damaged"), (two, "damaged")}
    store.put(one, write, {"identity_of": first})
    assert store.has(one)


@pytest.mark.parametrize("number", [0, 1])
def test_whose_a_marker_is_is_told_from_its_text_where_that_is_certain(number: int) -> None:
    key, identity = identified(number)
    text = json.dumps({"files": {}, "identity_of": identity, "label": "x"}, sort_keys=True).encode()

    assert markers.is_identity_of(json.loads(text), key)
    assert markers.is_of(text, key) == (number == 0)  # a quotation mark in a string is left to the parser
    assert not markers.is_of(text.replace(b"1e-05", b"2e-05"), key)


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
    digits = "0123" * 8
    (store.root / "tmp" / digits).mkdir(parents=True)
    (store.root / f"score/half-{digits}").mkdir()
    store.beside(f"score/z-{digits}").touch()
    return {f"tmp/{digits}", f"score/half-{digits}", f"score/z-{digits}.lock"}


def test_gc_removes_leftovers_and_keeps_results(filled: Store) -> None:
    left = litter(filled)

    assert set(gc(filled, dry=True).gone) == left
    assert all((filled.root / path).exists() for path in left)
    assert set(gc(filled).gone) == left
    assert list(filled.results()) == [OTHER, KEY]
    assert not list(verify(filled))
    assert gc(filled, keep=lambda key: key == KEY).gone == [OTHER]
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
    path, real, calls = store.beside(KEY), locks.flock, []

    def late(handle: int, how: int) -> bool:
        calls.append(handle)
        if len(calls) == 1:
            path.unlink()
            path.write_text("a third")
        return real(handle, how)

    monkeypatch.setattr(locks, "flock", late)
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
        (OTHER, True, "y", None),
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

    assert set(json.loads(gone.stdout)) == {KEY, OTHER}


@pytest.mark.parametrize("what", ["ls", "verify", "gc"])
def test_no_store_is_one_line_and_2(tmp_path: Path, what: str) -> None:
    result = titer(what, "--store", tmp_path / "none")

    assert result.exit_code == 2
    assert "expected a titer store" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "none").exists()


# Links, foreign names, and what cannot be read


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of the user's outside of the store, with a file that has a marker's name."""
    for name in ("photos/2020", "thesis/ch1"):
        (tmp_path / "precious" / name).mkdir(parents=True)
        (tmp_path / "precious" / name / "f.txt").write_text("mine")
    (tmp_path / "precious" / MARKER).write_text("mine")
    (tmp_path / "precious" / "thesis" / MARKER).write_text("mine")
    return tmp_path / "precious"


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("at", ["linked", "tmp", "embed", f"score/link-{'01' * 16}", f"tmp/{'01' * 16}"])
def test_gc_and_repair_follow_no_link(filled: Store, precious: Path, at: str) -> None:
    """A link under a name of ours goes itself; what is behind any link stays; other garbage goes all the same."""
    before, place = everything(precious), filled.root / at
    if place.exists():
        place.rmdir()
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(precious)
    (filled.path(KEY) / MARKER).unlink()

    removed = gc(filled)
    repair(filled)

    assert everything(precious) == before
    assert not removed.stayed
    assert set(removed.gone) == {KEY, *([at] if "/" in at else [])}
    assert place.is_symlink() == ("/" not in at)


def test_gc_leaves_what_has_no_name_of_ours(filled: Store) -> None:
    for name in ("notes/2024", "myrun/report", "score/mine", "tmp/mine"):
        (filled.root / name).mkdir(parents=True)
    (filled.root / "notes" / "a.lock").write_text("mine")
    (filled.root / "score" / "b.lock").write_text("mine")
    before = everything(filled.root)

    assert gc(filled).gone == []
    assert everything(filled.root) == before
    assert not list(verify(filled))


def test_one_path_that_cannot_be_removed_does_not_stop_the_rest(filled: Store, monkeypatch: Any) -> None:
    left, real = litter(filled), Path.unlink
    (filled.path(KEY) / MARKER).write_text("{")
    stuck = next(path for path in left if path.endswith(".lock"))

    def refusing(self: Path, missing_ok: bool = False) -> None:
        if self == filled.root / stuck:
            raise PermissionError(13, "Permission denied", str(self))
        real(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing)
    result = titer("gc", "--store", filled.root, "--json")

    assert result.exit_code == 1
    assert set(json.loads(result.stdout)) == {*left, KEY} - {stuck}
    assert "Permission denied" in result.stderr


def deep(file: Path) -> None:
    file.unlink()
    file.write_text("[" * 200_000)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [deep, fifo, folder])
def test_a_damaged_marker_is_no_result_and_every_command_can_go_on(filled: Store, damage: Any) -> None:
    damage(filled.path(KEY) / MARKER)

    assert not filled.has(KEY)
    assert [(problem.path, problem.kind) for problem in verify(filled)] == [(f"{KEY}/{MARKER}", "damaged")]
    assert titer("ls", "--store", filled.root).exit_code == 0
    filled.put(KEY, write, {})
    assert filled.has(KEY)
    damage(filled.path(KEY) / MARKER)
    assert gc(filled).gone == [KEY]


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(store: Store) -> None:
    store.put(KEY, lambda folder: (folder / "losses.csv").touch(), {})
    fifo(store.path(KEY) / "losses.csv")

    assert not store.has(KEY)
    assert [problem.kind for problem in verify(store)] == ["missing"]


def test_a_file_where_a_result_should_be_is_replaced(filled: Store) -> None:
    shutil.rmtree(filled.path(KEY))
    filled.path(KEY).write_text("a file")
    (filled.root / "attack" / f"link-{'01' * 16}").symlink_to(filled.root / "nowhere")
    link = f"attack/link-{'01' * 16}"

    filled.put(link, write, {})
    filled.put(KEY, write, {})

    assert filled.finished([KEY, link]) == {KEY, link}
    assert not any((filled.root / "tmp").iterdir())


@pytest.mark.parametrize("at", [KEY, f"{OTHER}/step-1"])
def test_a_folder_that_cannot_be_read_is_named_and_not_repaired(filled: Store, monkeypatch: Any, at: str) -> None:
    """Rights are what is missing, so that nothing is thrown away."""
    real = os.scandir

    def forbidden(path: Any) -> Any:
        if Path(path) == filled.root / at:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    problems, removed = repair(filled)

    assert [(problem.key, problem.kind) for problem in problems] == [("/".join(at.split("/")[:2]), "unreadable")]
    assert "Permission denied" in problems[0].text
    assert not removed.gone
    assert titer("verify", "--store", filled.root).exit_code == 1
    assert titer("ls", "--store", filled.root).exit_code == 0


def test_a_store_that_is_deleted_under_a_run_is_a_store_again(filled: Store) -> None:
    """What the run still computes is not lost."""
    shutil.rmtree(filled.root)

    filled.put(KEY, write, {})

    assert Store(filled.root).open().has(KEY)


def test_a_file_system_that_calls_a_lock_invalid_has_none(store: Store, monkeypatch: Any) -> None:
    def invalid(*_: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "flock", invalid)
    with store.using(), store.lock(KEY) as got:
        assert got


def test_tables_and_models_are_not_written_into_the_store(filled: Store, monkeypatch: Any) -> None:
    """There `verify` and `gc` would take them for results."""
    (filled.root.parent / "link").symlink_to(filled.root)
    for out in (filled.root, filled.root / "score", filled.root.parent / "link" / "x"):
        with pytest.raises(FolderError, match="outside of the store"):
            filled.refuse(out)
    filled.refuse(filled.root.parent / "out")

    words = ["run", "smoke", "--store", filled.root, "--out", filled.root / "myrun"]
    result = CliRunner().invoke(app, list(map(str, words)))

    assert result.exit_code == 2
    assert "outside of the store" in result.stderr
    assert not (filled.root / "myrun").exists()
