"""Pickles are read as plain tensors in a process of their own, or not at all."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.errors import DataError
from benchmark.imports import read, unpickle
from benchmark.imports.read import Held

APART = read.unpickled
ROOT = Path(__file__).parents[2]


class Evil:
    """A pickle that makes a file when it is loaded as pickles are."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def pickled(value: Any, file: Path) -> Path:
    torch.save(value, file)
    return file


@pytest.mark.slow
def test_a_pickle_is_read_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "unpickled", APART)
    seen = list[int]()
    monkeypatch.setattr(unpickle, "main", lambda *_: seen.append(os.getpid()))
    file = pickled({"state_dict": {"a.b": torch.arange(3.0)}, "step": 7}, tmp_path / "a.pt")

    held = read.read([file])

    assert seen == [] and held.others == ("step",)
    assert list(held.tensors) == ["state_dict.a.b"]
    assert torch.equal(held.tensors["state_dict.a.b"], torch.arange(3.0))
    evil = pickled({"a": Evil(tmp_path / "marker")}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match="which could run code"):
        read.read([evil])
    assert not (tmp_path / "marker").exists()
    torch.load(evil, weights_only=False)
    assert (tmp_path / "marker").exists()  # it does what it is said to do


def test_the_other_process_is_told_nothing_but_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, without the seconds that it takes."""
    calls, told = list[list[str]](), dict[str, str]()
    monkeypatch.setenv("HF_TOKEN", "secret")

    def called(command: list[str], **options: Any) -> None:
        calls.append(command)
        told.update(options["env"])
        unpickle.main(*command[-2:])

    monkeypatch.setattr(read, "unpickled", APART)
    monkeypatch.setattr(read.subprocess, "run", called)
    held = read.read([pickled({"a": torch.ones(2)}, tmp_path / "a.pt")])

    assert isinstance(held, Held) and list(held.tensors) == ["a"]
    assert [command[1:3] for command in calls] == [["-m", "benchmark.imports.unpickle"]]
    assert "PYTHONPATH" in told and "secret" not in told.values() and "HOME" not in told


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.nn.Linear(2, 2), r"got a pickle that needs torch.nn.modules.linear.Linear, which could run code"),
        ({"a": Path("x")}, r"which could run code: where you trust it, load it there, and .torch.save\(model.state_d"),
        ({"a": 3, "b": "text"}, "expected tensors, got a file without any"),
    ],
)
def test_more_than_tensors_is_refused_with_the_way_out(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        read.read([pickled(value, tmp_path / "a.pt")])

    assert "\n" not in str(refused.value)


def test_no_pickle_and_a_cut_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("<html>you must log in")
    whole = pickled({"a": torch.ones(2000)}, tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-900])
    deep: Any = torch.ones(1)
    for _ in range(30):
        deep = {"a": deep}
    pickled(deep, tmp_path / "deep.pt")

    for name in ("text.pt", "cut.pt", "deep.pt"):
        with pytest.raises(DataError, match=f"expected tensors alone in .*{name}, got"):
            read.read([tmp_path / name])


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "unpickled", lambda file, folder: None)

    with pytest.raises(DataError, match="a process that ended without a word"):
        read.read([pickled({"a": torch.ones(2)}, tmp_path / "a.pt")])


def test_tied_weights_get_memory_of_their_own(tmp_path: Path) -> None:
    one = torch.ones(4)
    held = read.read([pickled({"a": one, "b": one, "c": one[1:], "d": torch.nn.Parameter(one)}, tmp_path / "a.pt")])

    assert {name: value.shape[0] for name, value in held.tensors.items()} == {"a": 4, "b": 4, "c": 3, "d": 4}


def test_pickles_are_read_in_one_place_alone() -> None:
    found = sorted(
        str(file.relative_to(ROOT))
        for folder in ("benchmark", "defenses", "attacks", "metrics", "leaderboards")
        for file in (ROOT / folder).rglob("*.py")
        if re.search(r"torch\.load\(|pickle\.loads?\(|import pickle", file.read_text())
    )

    assert found == ["benchmark/imports/unpickle.py", "benchmark/mini/recipe/loop.py"]  # its own, while it is trained
    assert all("weights_only=True" in (ROOT / file).read_text() for file in found)
