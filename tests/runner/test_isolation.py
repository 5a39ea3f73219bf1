"""Whatever a plug-in does beside its result: its own cells fail and say why, and every other number stays."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmark.config import registry
from benchmark.errors import PluginError
from benchmark.plan.task import Task
from benchmark.results import records
from benchmark.runner import limits
from benchmark.runner.executors import local
from benchmark.runner.isolation import guard, interrupts, seal, surroundings
from benchmark.runner.loop import Attempt, attempt
from benchmark.runner.stages import Bench
from benchmark.runner.stages.account import Losses
from benchmark.store import Store
from benchmark.store.artifacts import Gallery
from tests import misbehaving
from tests.runner.test_loop import Silent, compute, files, make_plan

ESD = {"use": "esd", "steps": 2, "ddim_steps": 3, "lr": 0.01}


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    """The plug-in as a script's own class: it runs in this process."""
    registry.OWN["defense", "bad"] = misbehaving.Bad
    yield
    del registry.OWN["defense", "bad"]


def defending(how: str, folder: Path, model: Path) -> Task:
    """The task that trains the plug-in."""
    plan = make_plan(folder, model, defenses=["none", {"use": "bad", "how": how}], attacks=["none"])
    return next(task for task in plan.tasks.values() if task.plugin == "bad")


@pytest.fixture(scope="module")
def bench(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One bench for many tasks, as in a run."""
    return Bench(tiny_folder, Store(tmp_path_factory.mktemp("store")).open())


def tried(how: str, bench: Bench, folder: Path) -> Attempt:
    return attempt(defending(how, folder, bench.folder), bench, Silent())


@pytest.mark.parametrize("how", misbehaving.CHANGES)
def test_a_change_of_anything_but_the_result_fails_the_task_and_is_put_back(
    how: str, bench: Bench, tmp_path: Path
) -> None:
    """The message names the method and what it changed; the base is another, and as it was."""
    before, base, held = seal.Seal(bench.base), bench.base, surroundings.read()

    found = tried(how, bench, tmp_path)

    last = found.trace.strip().splitlines()[-1]
    assert (found.what, found.tampered) == ("failed", True)
    assert "expected bad to leave everything but its result as it was" in last
    assert misbehaving.CHANGES[how][1] in last
    assert surroundings.read() == held
    assert torch.isfinite(torch.tensor(float("nan"))).item() is False
    assert bench.base is not base
    assert before.bits.keys() == bench.seal.bits.keys()
    assert all(torch.equal(a, b) for a, b in zip(before.bits.values(), bench.seal.bits.values(), strict=True))
    assert not list(bench.store.results())


@pytest.mark.parametrize("how", misbehaving.ENDINGS)
def test_what_would_end_the_run_fails_the_task(how: str, bench: Bench, tmp_path: Path) -> None:
    """And its text can be written to a table, whatever it is."""
    with interrupts.listening():
        found = tried(how, bench, tmp_path)

    assert (found.what, found.tampered) == ("failed", False)
    assert misbehaving.ENDINGS[how][1] in found.trace
    assert len(found.trace.encode()) < 50_000


@pytest.mark.parametrize("how", misbehaving.DTYPES)
def test_a_delta_of_another_dtype_is_refused(how: str, bench: Bench, tmp_path: Path) -> None:
    found = tried(how, bench, tmp_path)

    assert found.what == "failed"
    assert f"got {misbehaving.DTYPES[how]} in unet.conv_in.weight" in found.trace


def test_a_second_runner_ends_where_its_method_does(bench: Bench, tmp_path: Path) -> None:
    """The copy of the process that a method forks never leaves the method's call."""
    task, process = defending("ok", tmp_path, bench.folder), os.getpid()

    def forking() -> int:
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
        return os.getpid()

    assert guard.guarded(task, None, forking) == process


def test_who_draws_from_the_global_generators_depends_on_its_task_alone(tiny_folder: Path, tmp_path: Path) -> None:
    """And leaves them as they were."""
    stored = []
    for number in range(2):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        bench = Bench(tiny_folder, Store(tmp_path / str(number)).open())
        assert tried("global numbers", bench, tmp_path).what == "ran"
        assert torch.equal(before, torch.get_rng_state())
        stored.append(files(bench.store.root))

    assert stored[0] == stored[1]


def pressed() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(5)


def test_a_keyboard_interrupt_is_ctrl_c_only_after_the_signal() -> None:
    found: list[bool] = []
    with interrupts.listening():
        assert not interrupts.real()
        with pytest.raises(KeyboardInterrupt):
            pressed()
        assert interrupts.real()
        thread = threading.Thread(target=lambda: found.append(interrupts.real()))
        thread.start()
        thread.join()

    assert found == [False]  # Python raises it on the main thread alone
    with interrupts.listening():
        assert not interrupts.real()


def test_a_ctrl_c_that_a_library_swallowed_stops_the_run_before_its_next_task(bench: Bench) -> None:
    """As one does that arrives in a destructor or a callback: Python prints it, and goes on."""
    done = list[str]()

    def work(task: str, _: Any) -> bool:
        done.append(task)
        with suppress(KeyboardInterrupt):
            pressed()
        return True

    run = SimpleNamespace(bench=bench, plan=SimpleNamespace(tasks={"a": "one", "b": "two"}), work=work)
    with interrupts.listening(), pytest.raises(KeyboardInterrupt):
        local.execute(run)  # type: ignore[arg-type]

    assert done == ["one"]


def test_a_poisoned_run_keeps_every_other_row_to_the_byte(tiny_folder: Path, tiny_run: Path, tmp_path: Path) -> None:
    """Also in the store, so that a later run without the method finds nothing false there."""
    hows = ["zeroes the base", "sets the default dtype", "replaces torch.isfinite", "a surrogate"]
    poison = [{"use": "bad", "how": how, "as": f"bad{number}"} for number, how in enumerate(hows)]
    plan = make_plan(tmp_path, tiny_folder, defenses=["none", *poison, ESD], attacks=["none"])
    clean = make_plan(tmp_path, tiny_folder, defenses=["none", ESD], attacks=["none"])

    outcome = compute(plan, tmp_path / "store", tiny_folder)

    assert {plan.tasks[key].plugin for key in outcome.failed} == {"bad"}
    assert len(outcome.failed) == len(hows)
    theirs = {f: content for f, content in files(tiny_run / "store").items() if f.startswith(("titer-", *clean.tasks))}
    assert files(tmp_path / "store") == theirs
    found, wanted = table(plan, tmp_path / "store", outcome), table(clean, tiny_run / "store", None)
    assert found[found.defense.isin(["none", "esd"])].reset_index(drop=True).equals(wanted)
    assert set(found[found.defense.str.startswith("bad")].status) == {"failed"}


def table(plan: Any, root: Path, outcome: Any) -> Any:
    failed, skipped = (outcome.failed, outcome.skipped) if outcome else ({}, {})
    return records.cells(plan, Store(root), failed, skipped).reset_index(drop=True)


@pytest.mark.parametrize("numbers", [(1, 1, None), ("a", 1, 0.5), (float("nan"), 1, 0.5), (1, float("inf"), 0.5)])
def test_progress_that_is_no_number_is_refused(numbers: tuple[Any, Any, Any]) -> None:
    step, total, loss = numbers

    with pytest.raises(PluginError, match="expected numbers in report"):
        Losses(Silent().step)(step=step, total=total, loss=loss)


def test_an_alarm_rings_again_for_who_caught_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AGAIN", 0.1)
    caught = 0
    with limits.each_task(0.05), limits.limited(Silent().step):
        while caught < 3:
            try:
                time.sleep(5)
            except limits.TimeLimitError:
                caught += 1

    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_task_that_cannot_be_stopped_is_named_and_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the last resort is a list; it is called from another thread while this one listens to nothing."""
    monkeypatch.setattr(limits, "GRACE", 0.1)
    monkeypatch.setattr(limits, "alarm", lambda *_: nullcontext())
    monkeypatch.setattr(limits.faulthandler, "dump_traceback_later", lambda *_, **__: None)  # it would end pytest
    said = list[str]()
    with limits.each_task(0.05, said.append), limits.limited(Silent().step, "lora on esd"):
        over = time.monotonic() + 30
        while not said and time.monotonic() < over:
            time.sleep(0.01)

    assert len(said) == 1
    assert said[0].startswith("lora on esd: expected the task to end within 0.05 seconds")


PROCESS = """
import ctypes, signal, sys, time
from benchmark.cli.run import give_up
from benchmark.runner import limits
from benchmark.runner.isolation import interrupts
limits.GRACE = 0.2
def stuck(library):  # that of tests.misbehaving, which would have torch imported
    mutex = ctypes.create_string_buffer(128)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
if sys.argv[1] == "time":
    print("ready", flush=True)
    with limits.each_task(0.2, give_up), limits.limited(lambda **_: None, "lora on esd"):
        stuck(ctypes.CDLL(None) if sys.argv[2] == "free" else ctypes.PyDLL(None))
with interrupts.insisting(lambda: print("stopped", flush=True)):
    print("ready", flush=True)
    stuck(ctypes.CDLL(None))
"""


def process(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, *words]
    found = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert found.stdout
    assert found.stdout.readline() == "ready\n"
    return found


@pytest.mark.parametrize(("lock", "says"), [("free", "It cannot be stopped"), ("held", "Timeout")])
def test_a_library_that_never_returns_is_ended_by_the_time_limit(lock: str, says: str) -> None:
    """Also where it holds Python's lock, so that no thread of Python can name the task: its stack is shown."""
    found = process("time", lock)

    error = found.communicate(timeout=60)[1]

    assert found.returncode == 1
    assert says in error


def test_a_second_ctrl_c_ends_the_process_whatever_it_does() -> None:
    found = process("interrupt")
    time.sleep(1)  # until it is in C: before, the first press ends it as Python does
    over = time.monotonic() + 60
    while found.poll() is None and time.monotonic() < over:
        found.send_signal(signal.SIGINT)
        time.sleep(0.1)

    assert found.communicate(timeout=60)[0] == "stopped\n"
    assert found.returncode == 130


def test_the_task_that_a_process_died_at_is_named_at_the_next_start(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    dead, running = (f"score/{name}-{32 * '0'}" for name in ("dead", "running"))
    for key in (dead, running, f"score/other-{32 * '0'}"):
        store.beside(key).parent.mkdir(exist_ok=True)
        store.beside(key).write_text("1 on elsewhere")
    with store.lock(running):
        found = store.abandoned({dead, running})

    assert found == [dead]
    assert not store.beside(dead).exists()
    assert store.abandoned({dead}) == []


def test_examples_are_a_methods_own(tiny_folder: Path, tmp_path: Path) -> None:
    """A method that paints over what it is given paints over nobody else's."""
    from benchmark.runner.stages.images import examples_of

    plan = make_plan(tmp_path, tiny_folder, defenses=["none", ESD])
    task = next(task for task in plan.tasks.values() if task.kind == "attack")
    (key,) = (key for role, key in task.parents.items() if role == "concept")
    bench = Bench(tiny_folder, Store(tmp_path / "store").open())
    held = Gallery(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ("a",), ("a cat",), (0,), (0,))
    bench.hold(key, held)

    examples_of(task, bench)["concept"].images.add_(1)

    assert not held.images.any()


@pytest.mark.parametrize("family", ["sd1", "sd21", "sdxl"])
def test_using_a_base_of_any_family_changes_nothing(family: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Hooks that a library installs by itself are no change of a plug-in."""
    bench = Bench(tiny_folders[family], Store(tmp_path / "store"))
    sealed, model = bench.seal, bench.base

    text = model.encode_text(["a cat"])
    model.predict(torch.randn(1, *model.latent_shape), torch.tensor([3]), text)
    model.encode_words(model.words(model.ids(["a cat"])))
    model.clone()

    assert sealed.broken() == []
