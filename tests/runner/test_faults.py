"""Killed, stopped, out of memory, hung, full: a run goes on or says why, and no number is ever wrong."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from attacks.lora import LoRA
from benchmark.cli import app, main
from benchmark.plan.task import Task
from benchmark.results import records
from benchmark.runner import stages
from benchmark.runner.executors import local
from benchmark.runner.limits import each_task, smaller
from benchmark.runner.loop import Outcome, run
from benchmark.runner.stages import Bench
from benchmark.store import Store, store
from benchmark.store.maintenance import gc, verify
from benchmark.store.store import MARKER
from benchmark.types import Delta
from defenses.esd import ESD
from metrics.presence import Presence
from tests.runner.test_loop import Silent, compute, files, make_plan
from tests.runs import run as titer
from tests.runs import write_config

COSTS = {"leaderboard.csv": ["defend_seconds", "peak_memory_mib"]}
TASKS = 32
OTHER = ["none", {"use": "esd", "steps": 2, "ddim_steps": 3, "lr": 0.02}]  # as no finished run has it
TABLES = ("curves.csv", "matrix.csv", "cells.csv", "leaderboard.csv")


def command(log: Path, words: list[str]) -> None:
    """`titer` in a process of its own, which writes to `log`."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    sys.argv = ["titer", *words]
    main()


def start(log: Path, *words: object) -> BaseProcess:
    """Start it; the modules are loaded once, in a server that forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tests.runner.test_faults",
            "benchmark.session.session",
            "benchmark.runner.progress",
            "benchmark.results.report.page",
        ]
    )
    process = context.Process(target=command, args=(log, [str(word) for word in words]))
    process.start()
    return process


def ended(process: BaseProcess) -> int:
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def tables(folder: Path) -> dict[str, str]:
    """A run's CSVs without what they cost."""
    return {
        name: pd.read_csv(folder / name, dtype=str).drop(columns=COSTS.get(name, [])).to_csv()
        if name in COSTS
        else (folder / name).read_text()
        for name in TABLES
    }


def markers(root: Path) -> dict[Path, bytes]:
    """Markers hold seconds and times: they change when a result is computed again."""
    return {path: path.read_bytes() for path in root.glob(f"*/*/{MARKER}")}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> tuple[Path, Path]:
    """An uninterrupted run of the command: its config and its folder."""
    folder = tmp_path_factory.mktemp("faults") / "whole"
    shutil.copytree(tiny_run, folder)
    assert len(markers(folder / "store")) == TASKS
    return folder / "tiny.yaml", folder


def kill_until_done(config: Path, folder: Path, moments: random.Random, most: int) -> int:
    """Start the same command again and again, killed at random moments, at most `most` times; count the kills."""
    kills = 0
    words = ("run", config, "--out", folder / "out", "--store", folder / "store", "--device", "cpu")
    while True:
        before = markers(folder / "store")
        process = start(folder / "log", *words)
        if kills < most:
            wait_for_a_moment(process, folder / "store", len(before), moments)
            process.kill()
        code = ended(process)
        assert code in (0, -signal.SIGKILL), (folder / "log").read_text()
        problems = list(verify(Store(folder / "store")))
        assert {problem.kind for problem in problems} <= {"unfinished"}, problems
        after = markers(folder / "store")
        assert {path: after[path] for path in before} == before, "something complete was computed again"
        if code == 0:
            return kills
        kills += 1


def wait_for_a_moment(process: BaseProcess, root: Path, before: int, moments: random.Random) -> None:
    """Some results later, and then some time later; one time in five while the tables are written."""
    wanted = TASKS if moments.random() < 0.2 else before + moments.randrange(9)
    while process.is_alive() and len(markers(root)) < min(wanted, TASKS):
        time.sleep(0.01)
    process.join(moments.uniform(0, 0.3 if wanted < TASKS else 1))


def check_same(folder: Path, reference: Path) -> None:
    """The killed run's folder is as if nothing had happened, once `gc` has removed what kills left."""
    assert tables(folder / "out") == tables(reference / "out")
    gc(Store(folder / "store"))
    assert files(folder / "store") == files(reference / "store")
    assert not list(verify(Store(folder / "store")))


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_tables(reference: tuple[Path, Path], tmp_path: Path) -> None:
    """Eighteen times, in one folder after the other."""
    config, whole = reference
    moments, kills, rounds = random.Random(1), 0, 0
    while kills < 18:
        folder = tmp_path / str(rounds)
        folder.mkdir()
        kills += kill_until_done(config, folder, moments, most=18 - kills)
        check_same(folder, whole)
        rounds += 1


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(reference: tuple[Path, Path], tmp_path: Path) -> None:
    """Each key is computed by exactly one of them, and both end with the same tables."""
    config, whole = reference
    both = [
        start(
            tmp_path / n, "run", config, "--out", tmp_path / f"o{n}", "--store", tmp_path / "store", "--device", "cpu"
        )
        for n in ("a", "b")
    ]

    assert [ended(process) for process in both] == [0, 0]

    counts = [last_counts(tmp_path / n) for n in ("a", "b")]
    assert sum(count["ran"] for count in counts) == TASKS
    assert [count["ran"] + count["found"] for count in counts] == [TASKS, TASKS]
    assert tables(tmp_path / "oa") == tables(tmp_path / "ob") == tables(whole / "out")
    assert files(tmp_path / "store") == files(whole / "store")


def last_counts(log: Path) -> dict[str, int]:
    """`ran 3, found 2, failed 0, skipped 0`."""
    pairs = [part.split() for part in log.read_text().strip().splitlines()[-1].split(", ")]
    return {what: int(count) for what, count in pairs}


def test_ctrl_c_says_how_to_go_on(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressed in the fourth task: three are kept, and the same command computes the others alone."""
    config = write_config(tmp_path, tiny_folder, defenses=["none"], attacks=["none"])
    words = ["run", config, "--out", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu"]
    real, seen = stages.run, list[Task]()

    def pressed(task: Task, bench: Bench, report: Any) -> Any:
        seen.append(task)
        if len(seen) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(task, bench, report)

    monkeypatch.setattr(stages, "run", pressed)
    stopped, again = (CliRunner().invoke(app, [str(word) for word in words]) for _ in range(2))

    assert stopped.exit_code == 130
    assert "stopped: 3 of 6 tasks are done; the same command goes on from here" in stopped.stderr
    assert "Traceback" not in stopped.output
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines()[-1] == "ran 3, found 3, failed 0, skipped 0"
    assert seen[3].key == seen[4].key
    assert not list(verify(Store(tmp_path / "store")))


@pytest.mark.slow
def test_ctrl_c_ends_the_process_of_the_command(reference: tuple[Path, Path], tmp_path: Path) -> None:
    config, whole = reference
    words = ("run", config, "--out", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu")
    process = start(tmp_path / "log", *words)
    while process.is_alive() and not list(Store(tmp_path / "store").results()):
        time.sleep(0.02)
    assert process.pid
    assert process.is_alive(), (tmp_path / "log").read_text()
    os.kill(process.pid, signal.SIGINT)

    assert ended(process) == 130, (tmp_path / "log").read_text()
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    done = len(list(Store(tmp_path / "store").results()))
    assert last == f"stopped: {done} of {TASKS} tasks are done; the same command goes on from here"
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not list(verify(Store(tmp_path / "store")))
    assert ended(start(tmp_path / "log", *words)) == 0
    assert last_counts(tmp_path / "log") == {"ran": TASKS - done, "found": done, "failed": 0, "skipped": 0}
    check_same(tmp_path, whole)


NO_MEMORY = [RuntimeError("HIP out of memory"), RuntimeError("could not create a primitive")]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError(), *NO_MEMORY])
def test_out_of_memory_is_known_in_all_words(error: Exception) -> None:
    tried = list[int]()

    def again(batch: int) -> None:
        tried.append(batch)
        if batch > 2:
            raise error

    smaller(8, again)

    assert tried == [8, 4, 2]


@pytest.mark.parametrize("error", [RuntimeError("no such thing"), ValueError("out of memory")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    tried = list[int]()

    def again(batch: int) -> None:
        tried.append(batch)
        raise error

    with pytest.raises(type(error)):
        smaller(8, again)

    assert tried == [8]


def test_out_of_memory_halves_the_batch_and_puts_it_back(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    whole, real, tried = make_plan(tmp_path, tiny_folder, defenses=["none"], attacks=["none"]), stages.run, list[int]()
    drawn = [(key, task) for key, task in whole.tasks.items() if task.kind == "generate"]
    plan = replace(whole, tasks=dict(drawn[:2]))

    def small(task: Task, bench: Bench, report: Any) -> Any:
        if task.kind == "generate":
            tried.append(bench.batch)
            if bench.batch > 2:
                raise torch.OutOfMemoryError("CUDA")
        return real(task, bench, report)

    monkeypatch.setattr(stages, "run", small)
    bench = Bench(tiny_folder, Store(tmp_path / "store"), batch=8)

    outcome = run(plan, bench, Silent(), local.execute)

    assert (len(outcome.ran), outcome.failed) == (2, {})
    assert tried == [8, 4, 2] * 2
    assert bench.batch == 8


def test_a_task_that_never_has_enough_memory_fails_alone(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A batch of 1 is the last try; a defense has no batch to halve, so it is not tried in vain."""
    plan, real, tried = make_plan(tmp_path, tiny_folder), stages.run, list[tuple[str, int]]()
    image = next(key for key, task in plan.tasks.items() if task.label.startswith("retained images of none@0 on none"))

    def never(task: Task, bench: Bench, report: Any) -> Any:
        if task.key == image or task.kind == "defend":
            tried.append((task.kind, bench.batch))
            raise torch.OutOfMemoryError("no memory left")
        return real(task, bench, report)

    monkeypatch.setattr(stages, "run", never)
    outcome = compute(plan, tmp_path / "store", tiny_folder, batch=4)

    assert tried == [("generate", 4), ("generate", 2), ("generate", 1), ("defend", 4)]
    assert {plan.tasks[key].kind for key in outcome.failed} == {"generate", "defend"}
    assert all("no memory left" in trace for trace in outcome.failed.values())
    assert len(outcome.failed) == 2
    assert all("did not finish" in reason for reason in outcome.skipped.values())
    assert len(outcome.ran) + len(outcome.skipped) + 2 == len(plan.tasks)


def cell_states(plan: Any, root: Path, outcome: Outcome) -> dict[str, set[str]]:
    table = records.cells(plan, Store(root), outcome.failed, outcome.skipped)
    return {defense: set(rows.status) for defense, rows in table.groupby("defense")}


@pytest.mark.parametrize("reports", [True, False])
def test_a_method_that_hangs_fails_by_its_time_limit(
    tiny_folder: Path, tiny_run: Path, tmp_path: Path, monkeypatch: Any, reports: bool
) -> None:
    """Even one that catches every Exception, and one that reports nothing."""
    plan = make_plan(tmp_path, tiny_folder, defenses=OTHER, attacks=["none"])

    def hang(*_: Any, report: Any, **__: Any) -> Delta:
        while True:
            try:
                time.sleep(0.01)
                if reports:
                    report(step=1, total=2, loss=1.0)
            except Exception:
                continue

    monkeypatch.setattr(ESD, "protect", hang)
    shutil.copytree(tiny_run / "store", tmp_path / "store")  # the undefended model's results need no time
    bench = Bench(tiny_folder, Store(tmp_path / "store").open())
    assert bench.seal
    with each_task(1):
        outcome = run(plan, bench, Silent(), local.execute)

    assert [plan.tasks[key].label for key in outcome.failed] == ["esd on cat"]
    trace = next(iter(outcome.failed.values()))
    assert "expected the task to end within 1 seconds" in trace
    assert "in hang" in trace
    assert cell_states(plan, tmp_path / "store", outcome) == {"none": {"ok"}, "esd": {"failed"}}
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_report_alone_keeps_the_time_limit_where_there_is_no_alarm(monkeypatch: Any) -> None:
    from benchmark.runner import limits

    monkeypatch.delattr(limits.signal, "setitimer")
    with each_task(0.05), limits.limited(Silent().step) as report:
        time.sleep(0.1)
        with pytest.raises(limits.TimeLimitError, match="expected the task to end"):
            report(step=2, total=2, loss=0.0)


def wrong_shapes(*_: Any, **__: Any) -> Delta:
    return Delta(dense={"unet.conv_in.weight": torch.zeros(3)})


def raises(*_: Any, **__: Any) -> Delta:
    raise ZeroDivisionError("thesis deadline")


@pytest.mark.parametrize(("method", "says"), [(wrong_shapes, "unet.conv_in.weight"), (raises, "thesis deadline")])
def test_a_broken_method_fails_its_cells_only(
    reference: tuple[Path, Path], tiny_folder: Path, tmp_path: Path, monkeypatch: Any, method: Any, says: str
) -> None:
    """And the command ends with 1, with the traceback in its folder."""
    monkeypatch.setattr(ESD, "protect", method)

    result = titer(tmp_path, tiny_folder, store=reference[1] / "store", defenses=OTHER)

    assert result.exit_code == 1
    traces = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert any(says in trace and "Traceback" in trace for trace in traces.values())
    cells, whole = (pd.read_csv(path / "out" / "cells.csv") for path in (tmp_path, reference[1]))
    assert set(cells[cells.defense == "esd"].status) == {"failed"}
    ours, theirs = (table[table.defense == "none"].reset_index(drop=True) for table in (cells, whole))
    pd.testing.assert_frame_equal(ours, theirs)


@pytest.mark.parametrize("column", [torch.zeros(1), torch.zeros(2, 1), [0.0, 0.0]])
def test_a_metric_of_the_wrong_shape_fails_and_counts_for_no_image(
    tiny_folder: Path, tmp_path: Path, monkeypatch: Any, column: Any
) -> None:
    plan = make_plan(tmp_path, tiny_folder, defenses=["none"], attacks=["none"])
    monkeypatch.setattr(Presence, "score", lambda *_: {"value": column})

    outcome = compute(plan, tmp_path / "store", tiny_folder)

    assert {plan.tasks[key].plugin for key in outcome.failed} == {"presence"}
    assert all("expected 'value' of shape (2,)" in trace for trace in outcome.failed.values())


def test_a_judge_that_fails_on_every_image_fails_and_is_tried_again(
    tiny_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """An import error or a lost mount is of no image: kept as missing numbers it would never be mended."""
    plan, real = make_plan(tmp_path, tiny_folder, defenses=["none"], attacks=["none"]), Presence.score

    def broken(self: Presence, images: Any, prompts: Any, concept: Any) -> Any:
        if len(images) == 1 and prompts[0].text.endswith(fails_on):
            raise RuntimeError("no such judge")
        if len(images) > 1:
            raise RuntimeError("not so many")
        return real(self, images, prompts, concept)

    monkeypatch.setattr(Presence, "score", broken)
    fails_on: tuple[str, ...] = ("one", "two")
    outcome = compute(plan, tmp_path / "store", tiny_folder)
    assert {plan.tasks[key].plugin for key in outcome.failed} == {"presence"}
    assert all("an error on each of 2 images" in trace for trace in outcome.failed.values())

    fails_on = ("one",)
    again = compute(plan, tmp_path / "store", tiny_folder)
    assert not again.failed
    assert set(again.ran) == set(outcome.failed)


def test_memory_is_no_fault_of_an_image(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A metric without memory for two images gets one at a time; without memory for one, it fails."""
    plan, real = make_plan(tmp_path, tiny_folder, defenses=["none"], attacks=["none"]), Presence.score

    def hungry(self: Presence, images: Any, prompts: Any, concept: Any) -> Any:
        if len(images) > most:
            raise torch.OutOfMemoryError("no memory left")
        return real(self, images, prompts, concept)

    monkeypatch.setattr(Presence, "score", hungry)
    most = 0
    failed = compute(plan, tmp_path / "store", tiny_folder, batch=2).failed
    most = 1
    outcome = compute(plan, tmp_path / "store", tiny_folder, batch=2)

    assert sorted(outcome.ran) == sorted(failed) == sorted(key for key in plan.tasks if "/presence" in key)
    assert records.scores(plan, Store(tmp_path / "store")).value.notna().all()


def test_an_attack_out_of_memory_after_a_snapshot_keeps_nothing(
    tiny_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Another machine would have gone further: this is no property of the attack."""
    plan, real = make_plan(tmp_path, tiny_folder, defenses=["none"]), LoRA.finetune

    def short(self: LoRA, *words: Any, **more: Any) -> Any:
        yield next(real(self, *words, **more))
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(LoRA, "finetune", short)

    failed = compute(plan, tmp_path / "store", tiny_folder).failed

    assert [plan.tasks[key].kind for key in failed] == ["attack"]


def test_what_a_killed_start_left_is_no_reason_to_refuse(reference: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed between making the run's folder and marking it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".run.json.0a1b2c3d").write_text("{")

    result = CliRunner().invoke(
        app, ["board", str(reference[0]), "--out", str(tmp_path / "out"), "--store", str(reference[1] / "store")]
    )

    assert result.exit_code == 0, result.output


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_fails_the_task_with_the_reason(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The rest goes on, and once there is room again so does the task."""
    plan = make_plan(tmp_path, tiny_folder, attacks=["none"])
    monkeypatch.setattr("benchmark.runner.stages.training.save_delta", full)

    outcome = compute(plan, tmp_path / "store", tiny_folder)

    assert [plan.tasks[key].label for key in outcome.failed] == ["esd on cat"]
    last = next(iter(outcome.failed.values())).strip().splitlines()[-1]
    assert "StoreError: expected to write" in last
    assert "No space left on device" in last
    assert not list(verify(Store(tmp_path / "store")))
    monkeypatch.undo()
    assert len(compute(plan, tmp_path / "store", tiny_folder).ran) == 1 + len(outcome.skipped)


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_store_that_cannot_be_written_stops_the_run_with_2(
    reference: tuple[Path, Path], tmp_path: Path, monkeypatch: Any, code: int
) -> None:
    """Before anything is computed, in one line. A finished run is shown all the same."""
    config, whole = reference
    real = Path.write_text
    Store(tmp_path / "store").open()

    def read_only(path: Path, *words: Any, **more: Any) -> int:
        if path.parent in (tmp_path / "store", whole / "store"):
            raise OSError(code, os.strerror(code))
        return real(path, *words, **more)

    monkeypatch.setattr(Path, "write_text", read_only)
    monkeypatch.setattr(stages, "run", None)
    result, shown = (
        CliRunner().invoke(app, ["run", str(config), "--out", str(out), "--store", str(at), "--device", "cpu"])
        for out, at in ((tmp_path / "out", tmp_path / "store"), (whole / "out", whole / "store"))
    )

    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert os.strerror(code) in result.stderr
    assert "--store" in result.stderr
    assert shown.exit_code == 0, shown.output


def test_a_full_disk_under_the_tables_is_one_line(
    reference: tuple[Path, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    from leaderboards.board import Board

    config, whole = reference
    monkeypatch.setattr(Board, "write", full)

    out = str(tmp_path / "out")  # another folder than the finished run's, whose tables need not be written again
    result = CliRunner().invoke(app, ["run", str(config), "--out", out, "--store", str(whole / "store")])

    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "No space left on device" in result.stderr


@pytest.mark.parametrize("how", ["truncate", "alter", "remove", "marker"])
def test_a_damaged_result_is_found_and_computed_again(
    tiny_folder: Path, tmp_path: Path, how: str, reference: tuple[Path, Path]
) -> None:
    """The table that comes out is the right one, not the altered one."""
    plan, root = make_plan(tmp_path, tiny_folder, defenses=["none"], attacks=["none"]), tmp_path / "store"
    shutil.copytree(reference[1] / "store", root)
    whole, key = files(root), next(key for key in plan.tasks if key.startswith("score/presence"))
    file = root / key / ("scores.parquet" if how != "marker" else MARKER)
    content = file.read_bytes()
    if how == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:-9] if how == "truncate" else content.replace(b"s", b"t", 1))

    problems = list(verify(Store(root)))
    outcome = compute(plan, root, tiny_folder)

    assert [problem.path for problem in problems] == [f"{key}/{file.name}"]
    assert (outcome.ran, outcome.failed) == ([key], {})
    assert files(root) == whole
    assert not list(verify(Store(root)))


LOCKED = f"score/x-{'ab' * 16}"


HOLDER = """
import sys, time
from pathlib import Path
from benchmark.store import Store

store = Store(Path(sys.argv[1]))
with store.using(), store.lock(sys.argv[2]):
    time.sleep(300)
"""


def test_a_lock_dies_with_its_owner(tmp_path: Path) -> None:
    ours = Store(tmp_path / "store").open()
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "store"), LOCKED])
    while not ours.beside(LOCKED).is_file() or ours.locker(LOCKED) == "unknown":
        assert process.poll() is None
        time.sleep(0.02)
    with ours.lock(LOCKED) as got:
        assert not got
    assert ours.locker(LOCKED).startswith(f"{process.pid} on ")
    with pytest.raises(store.FolderError, match="got a run that uses it"):
        gc(ours)

    process.kill()
    process.wait(60)

    with ours.lock(LOCKED) as got:
        assert got
    assert gc(ours).gone == []
