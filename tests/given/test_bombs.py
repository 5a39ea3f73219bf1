"""What is small on the disk and endless when read ends in one line, within 1 GiB and five seconds of one core."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.runs import CARD

CHILD = """
import json, resource, sys, time
import benchmark.data.pictures, benchmark.data.table, pyarrow.parquet
from benchmark.config import config
from benchmark.data import load_concept
from benchmark.errors import InputError
from benchmark.model.bases import find

size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
for name, what, path in json.loads(sys.argv[1]):
    began = time.process_time()
    try:
        {"config": config.load, "card": load_concept, "model": lambda folder: find(folder, "cached")}[what](path)
        said = "nothing"
    except InputError as error:
        said = str(error)
    print(json.dumps([name, said, time.process_time() - began]), flush=True)
"""
LINES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


def text(file: str, content: str) -> Callable[[Path, Path], object]:
    return lambda folder, _: (folder / file).write_text(content)


def card(**group: object) -> Callable[[Path, Path], object]:
    prompts = {**CARD["prompts"], "safe": [group]}  # type: ignore[dict-item]
    return text("card.yaml", yaml.safe_dump({**CARD, "prompts": prompts}))


def table(file: str, make: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    return lambda folder, model: (card(file=file)(folder, model), make(folder / file))


def picture(make: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    def made(folder: Path, _: Path) -> None:
        prompts = {**CARD["prompts"], "attacker": [{"images": "p", "captions": "a cat"}]}  # type: ignore[dict-item]
        (folder / "card.yaml").write_text(yaml.safe_dump({**CARD, "prompts": prompts}))
        (folder / "p").mkdir()
        make(folder / "p" / "a.png")

    return made


def sparse(size: int, head: bytes) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        with file.open("wb") as handle:
            handle.write(head)
            handle.truncate(size)

    return make


def many_of_one(file: Path) -> None:
    prompt = pa.DictionaryArray.from_arrays(np.zeros(3000, np.int32), ["dog " + "x" * 1_000_000])
    pq.write_table(pa.table({"prompt": prompt}), file, compression="zstd", store_schema=False)


def header(folder: Path, model: Path) -> None:
    for part in model.rglob("*"):
        to = folder / part.relative_to(model)
        to.mkdir(parents=True, exist_ok=True) if part.is_dir() else to.write_bytes(part.read_bytes())
    sparse((6 << 30) + 16, (6 << 30).to_bytes(8, "little"))(folder / "unet/diffusion_pytorch_model.safetensors")


BOMBS: dict[str, tuple[str, str, Callable[[Path, Path], object], str]] = {
    "aliases": ("config", "c.yaml", text("c.yaml", f"{LINES}claims: *j\n"), "once its aliases are replaced"),
    "depth": ("config", "c.yaml", text("c.yaml", "claims: " + "[" * 20_000 + "]" * 20_000), "more than 50 deep"),
    "aliases in a card": ("card", "c.yaml", text("c.yaml", f"{LINES}labels: *j\n"), "once its aliases are replaced"),
    "a large file": ("config", "c.yaml", lambda f, _: sparse(1 << 32, b"name: x\n")(f / "c.yaml"), "4,194,304"),
    "combinations": (
        "card",
        "card.yaml",
        card(text="{a}{b}{c}{d}{e}{f}", each={k: [str(i) for i in range(60)] for k in "abcdef"}),
        "got 46,656,000,000",
    ),
    "a format": ("card", "card.yaml", card(text="a dog {n:>999999999}", each={"n": ["x"]}), "name of a value alone"),
    "a format for a table": (
        "card",
        "card.yaml",
        lambda f, m: (card(file="a.csv", text="{a:>9999999999}")(f, m), (f / "a.csv").write_text("a\nx\n")),
        "name of a value alone",
    ),
    "a table that is a pipe": ("card", "card.yaml", table("a.csv", os.mkfifo), "got a pipe or a device"),
    "a table without end": ("card", "card.yaml", table("a.txt", lambda f: f.symlink_to("/dev/zero")), "or a device"),
    "a large table": ("card", "card.yaml", table("a.csv", sparse(3 << 30, b"prompt\n")), "3,221,225,472 bytes"),
    "an endless line": ("card", "card.yaml", table("a.csv", sparse(500 << 20, b"prompt\n")), "expected a table in"),
    "an endless line of text": ("card", "card.yaml", table("a.txt", sparse(500 << 20, b"x")), "a line of more than"),
    "parquet": ("card", "card.yaml", table("a.parquet", many_of_one), "more than 524,288 each"),
    "a picture that is a pipe": ("card", "card.yaml", picture(os.mkfifo), "it is no regular file"),
    "a picture without end": ("card", "card.yaml", picture(lambda f: f.symlink_to("/dev/zero")), "no regular file"),
    "pixels": ("card", "card.yaml", picture(lambda f: Image.new("1", (13_300, 13_300)).save(f)), "13300 x 13300"),
    "a header": ("model", "", header, "a header of 6,442,450,944 bytes"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, tuple[str, float]]:
    """What one process says of each, and how long it took."""
    root, cases = tmp_path_factory.mktemp("bombs"), []
    for number, (name, (what, file, make, _)) in enumerate(BOMBS.items()):
        folder = root / str(number)
        folder.mkdir()
        make(folder, tiny_folder)
        cases.append((name, what, str(folder / file)))
    words = [sys.executable, "-c", CHILD, json.dumps(cases)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return {name: (text, seconds) for name, text, seconds in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line(said: dict[str, tuple[str, float]], name: str) -> None:
    text, seconds = said[name]

    assert BOMBS[name][3] in text
    assert len(text) < 1000
    assert seconds < 5
