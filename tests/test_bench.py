"""The bench: its arithmetic, and that every line of its table can be measured, here at a tiny size."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.config import registry
from benchmark.diffusion import Model
from benchmark.kit.conformance import SMALL, tiny_concept, tiny_examples, tiny_model
from tests.bench import __main__ as command
from tests.bench import alone, executors, gpu, loops, runs, sampling, scale, training
from tests.bench.paired import Ratio, Seconds, Turns, alternate, ratio
from tests.bench.table import Line, Row, as_json, compared, markdown
from tests.bench.training import Bed, Case
from tests.runs import write_config

GUARDS = ("negative_prompt", "safety_checker", "safree", "sld", "trasce")
FACTS = {
    "cores": 2,
    "processor": "x",
    "threads": 1,
    "accelerator": "none",
    "versions": {"torch": "2", "diffusers": "0"},
}


def both(*times: float) -> list[Seconds]:
    """Seconds of a machine that does nothing else."""
    return [Seconds(t, t) for t in times]


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    """3, 2, 1.5, 10, 2: the middle one is 2, whatever the outlier; the medians of both are kept."""
    found = ratio(both(1, 2, 4, 1, 3), both(3, 4, 6, 10, 6))

    assert found.value == found.processor == 2
    assert (found.ours, found.theirs, found.pairs) == (2, 6, 5)
    assert 1.5 <= found.low <= 2 <= found.high <= 10


def test_the_interval_of_pairs_that_agree_is_a_point() -> None:
    found = ratio(both(1, 2, 4), both(2, 4, 8))

    assert (found.low, found.value, found.high) == (2, 2, 2)


def test_processor_time_has_a_ratio_of_its_own() -> None:
    """Somebody else took half of our wall clock."""
    found = ratio([Seconds(2, 1)] * 3, [Seconds(2, 2)] * 3)

    assert (found.value, found.processor) == (1, 2)


def test_the_interval_covers_a_known_ratio_about_as_often_as_it_says() -> None:
    """Two hundred times 25 pairs, whose logarithms scatter around log 1.3."""
    rng, hits = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        ours, theirs = torch.exp(0.2 * torch.randn(2, 25, generator=rng))
        found = ratio(both(*ours.tolist()), both(*(1.3 * theirs).tolist()), draws=400)
        hits += found.low <= 1.3 <= found.high

    assert 0.88 <= hits / 200 <= 0.99


def test_neighbours_are_added_up_to_a_block() -> None:
    """Steps of two kinds, of 1 and 3 seconds, against 2 and 3: 5 / 4, not the ratio of either."""
    found = ratio(both(1, 3) * 4, both(2, 3) * 4, block=2)

    assert found.value == 5 / 4
    assert found.pairs == 4


@pytest.mark.parametrize(("ours", "theirs", "block"), [([1.0], [1.0, 2.0], 1), ([], [], 1), ([1.0], [1.0], 2)])
def test_times_without_a_pair_are_an_error(ours: list[float], theirs: list[float], block: int) -> None:
    with pytest.raises(ValueError, match="expected pairs"):
        ratio(both(*ours), both(*theirs), block=block)


def test_both_run_in_turn_and_the_first_round_does_not_count() -> None:
    order, now = list[str](), [0.0]

    def take(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds + (100 if len(order) < 3 else 0)  # warming up takes long

    times = alternate(partial(take, "a", 1), partial(take, "b", 2), 3, clock=lambda: Seconds(now[0], 2 * now[0]))

    assert "".join(order) == "ab" * 4
    assert times == ([(1, 2)] * 3, [(2, 4)] * 3)


def test_a_report_times_both_loops_step_by_step() -> None:
    """Ours takes 1, 2, 3, ... s a step, theirs 10 s; the first two steps are not counted, nor is what lies between."""
    now = [0.0]

    def other() -> Iterator[float]:
        for i in count():
            now[0] += 10
            yield float(i)

    turns = Turns(other(), clock=lambda: Seconds(now[0], now[0]))
    for step in range(1, 6):
        now[0] += step
        turns(step=step, total=5, loss=float(step - 1))

    assert turns.ours == both(3, 4, 5)
    assert turns.theirs == both(10, 10, 10)
    assert turns.apart() == 0


def test_losses_apart_are_found() -> None:
    turns = Turns(iter([1.0, 2.0, 3.0]))
    for step, loss in enumerate([1.0, 2.2, 3.0], 1):
        turns(step=step, total=3, loss=loss)

    assert turns.apart() == pytest.approx(0.2 / 2.2)


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [(">= 1.05", 1.05, True), (">= 1.05", 1.04, False), ("<= 3", 3.1, False), ("", 1.0, None), ("<= 3", None, None)],
)
def test_a_target_is_met_or_not(target: str, value: float | None, met: bool | None) -> None:
    assert Row(what="w", value=value, target=target).met is met


def test_the_table_says_what_was_measured_and_what_was_not() -> None:
    rows = [compared("a", ratio(both(1, 1), both(2, 2)), target=">= 3"), Row(what="b", value=None, note="no GPU")]
    text, data = markdown({"line": rows}, FACTS, 1.0), json.loads(as_json({"line": rows}, FACTS, 1.0))

    assert "| `line` | a | 2 x [2, 2] | >= 3 | **no** | 1 s against 2 s, 2 pairs; of processor time 2 x |" in text
    assert "| `line` | b | not measured |  |  | no GPU |" in text
    assert [row["met"] for row in data["rows"]] == [False, None]
    assert data["rows"][0]["more"]["pairs"] == 2


def test_one_line_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Sequence[Row]:
        raise ValueError("no such thing")

    lines = (Line("bad", broken), Line("good", lambda: [Row(what="w", value=2.0)]), Line("never", broken))
    monkeypatch.setattr(command, "LINES", lines)

    code = command.main(["--only", "bad", "--only", "good", "--out", str(tmp_path)])

    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert code == 1
    assert [(row["line"], row["value"]) for row in rows] == [("bad", None), ("good", 2.0)]
    assert "failed: ValueError: no such thing" in capsys.readouterr().out
    assert (tmp_path / "bench.md").is_file()


# Every line, small.


@pytest.fixture(scope="module")
def tiny() -> Bed:
    return Bed(tiny_model(), tiny_concept(), dict.fromkeys(("concept", "safe", "benign"), tiny_examples()))


def small(case: Case) -> Case:
    """A case that the tiny model can run in a second."""
    method = case.method
    wanted = {f.name: SMALL[f.name] for f in fields(method) if f.name in SMALL and f.name not in ("perceptual",)}
    sizes = {"d2_sizes": (2,), "d2_latents": 4, "d2_images": 4, "u2_batch": 3, "u2_adapt": 2, "rank": 2, "alpha": 2}
    wanted |= {name: value for name, value in sizes.items() if any(f.name == name for f in fields(method))}
    return replace(case, method=replace(method, **wanted)).cut(2 if "patronus" in type(method).__name__.lower() else 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", training.NAMES)
def test_the_loop_by_hand_minimises_what_the_method_does(name: str, tiny: Bed) -> None:
    """Step for step the same losses from the same random numbers; the loop shares no code with the method."""
    case = small(training.cases()[name])

    found, apart = training.in_turn(case, tiny)

    assert apart < training.ALIKE
    assert found.pairs >= 1


def test_a_loop_of_another_objective_is_refused(tiny: Bed) -> None:
    case = small(training.cases()["esd"])

    def other(model: Model, concept: Any, data: Any, m: Any, rng: torch.Generator) -> Iterator[float]:
        return loops.esd(model, concept, data, replace(m, eta=m.eta + 1), rng)

    with pytest.raises(ValueError, match="expected losses of one objective"):
        training.in_turn(replace(case, loop=other), tiny)


@pytest.mark.slow
def test_a_lora_run_is_compared_with_the_published_loop(tiny: Bed) -> None:
    rows = training.published(tiny, steps=2, rounds=1)

    assert [row.target for row in rows] == [">= 1.5", ""]
    assert all(row.value and row.value > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_published_loop_minimises_the_same(accumulate: int, tiny: Bed) -> None:
    """It shuffles and samples by itself; at rate 0 its losses are those of the bare loop, on average."""
    method = replace(training.demo("attack")["lora"], lr=0.0, batch=4, rank=2)
    seeded = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        bare = loops.lora(tiny.model, tiny.concept, dict(tiny.data), method, seeded)
        published = loops.published_lora(tiny.model, dict(tiny.data), method, seeded, accumulate=accumulate)
        a, b = (sum(next(loop) for _ in range(20)) / 20 for loop in (bare, published))

    assert a == pytest.approx(b, rel=0.08)


@pytest.mark.slow
def test_the_pipeline_draws_our_images(tiny_folder: Path) -> None:
    rows = sampling.rows(tiny_folder, prompts=2, images=2, rounds=1)

    assert [row.target for row in rows] == [">= 1.05", ""]
    assert all(row.value and row.value > 0 for row in rows)


def invoked(words: Sequence[object], *, expect: str = "") -> tuple[float, float]:
    """In place of a process: the command here."""
    result: Result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert expect in result.stdout
    return 1.0, 0.5


@pytest.mark.slow
def test_a_run_is_divided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path) -> None:
    """Model seconds come from the records of the run; what is left is the rest's."""

    def here(words: Sequence[object], folder: Path, loaded: Sequence[str]) -> dict[str, Any]:
        with pytest.raises(SystemExit):
            runs.divided([str(word) for word in words], folder / "none", folder / "report.json")
        return json.loads((folder / "report.json").read_text()) | {"wall": 1e6}

    monkeypatch.setattr(runs, "in_parts", here)
    monkeypatch.setattr("sys.argv", ["titer"])
    share, looks, start = runs.overhead(str(write_config(tmp_path, tiny_folder)), only="")

    assert share.value is not None
    assert 0 < share.value < 100
    assert share.more["model"] < share.more["rest"]
    assert looks.value is not None
    assert 0 < looks.value < 100
    assert start.value is not None
    assert start.value > 0


@pytest.mark.slow
def test_a_finished_run_is_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path) -> None:
    monkeypatch.setattr(alone, "command", invoked)

    (row,) = runs.again(str(write_config(tmp_path, tiny_folder)), runs=1)

    assert row.value == 1


@pytest.mark.slow
def test_a_command_is_timed_in_a_process_of_its_own() -> None:
    wall, used = alone.command(["--help"], expect="Usage")

    assert used > 0
    assert wall > 0


@pytest.mark.slow
def test_a_command_that_fails_is_no_time() -> None:
    with pytest.raises(RuntimeError, match="expected titer"):
        alone.command(["no-such-command"])


@pytest.mark.slow
def test_answers_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "command", invoked)
    monkeypatch.setattr(runs, "command", invoked)

    assert [row.value for row in runs.answers(runs=1)] == [1, 1]


def test_a_large_plan_has_the_cells_it_says() -> None:
    plan = scale.many(2, defenses=3, attacks=2, seeds=2, budgets=4)

    assert len(plan.cells) == 2 * 3 * 2 * 2 * 5
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)


@pytest.mark.slow
def test_scale_is_measured_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here in this one; `alone` has a test of its own."""
    monkeypatch.setattr(scale, "alone", lambda function, *given: alone.measured(function, given))
    monkeypatch.setattr(alone, "command", invoked)
    monkeypatch.setattr(scale, "many", partial(scale.many, defenses=2, attacks=2, seeds=1, budgets=2))

    planned, stored, boards = scale.planning(1), scale.stored(1, 20, runs=1), scale.boards(1, 2, 1, draws=50)

    assert all(row.value is not None and row.target for row in (*planned, *stored, *boards))


def test_a_process_of_its_own_has_its_own_memory() -> None:
    spent = alone.alone(len, "abc")

    assert spent.result == 3
    assert 0 < spent.megabytes < alone.peak()


@pytest.mark.slow
def test_a_schedule_is_simulated() -> None:
    (row,) = executors.schedule(["cat"])

    assert row.value is not None
    assert 0 < row.value <= 100


def test_without_ray_its_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "find_spec", lambda name: None)

    (row,) = executors.workers()

    assert row.value is None
    assert "not installed" in row.note


@pytest.mark.slow
def test_tasks_a_second_count_from_when_each_worker_has_ended_one(tiny_folder: Path) -> None:
    """In this process, which has its threads set back."""
    threads = torch.get_num_threads()

    assert executors.served(False, tiny_folder, 3, 1) > 0
    torch.set_num_threads(threads)


def test_without_a_gpu_the_gpu_lines_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    (row,) = gpu.rows()

    assert row.value is None
    assert "no GPU" in row.note


@pytest.mark.slow
def test_the_gpu_lines_measure_every_method(monkeypatch: pytest.MonkeyPatch, plain_kernels: None) -> None:
    """All but those that have no steps, and the one that is for another family."""
    monkeypatch.setattr(registry, "OWN", {})  # what other tests have registered
    card = replace(tiny_concept(), phrase="at", paraphrases=("small pet",))
    size = gpu.Size(tiny_model, concept=lambda: card, batches=(1, 2), steps=2, rounds=1, training=3)

    rows = gpu.rows(size)

    without = {row.what.split()[1].rstrip(":"): row.note for row in rows if row.value is None}
    of_flows = without.pop("erase_anything")
    assert "add_k_proj" in of_flows
    assert without == dict.fromkeys([*GUARDS, "component_swap", "cure", "rece", "uce"], "it has no steps to count")
    methods = {row.what.split()[1].rstrip(":") for row in rows if row.what.startswith(("attack", "defense"))}
    assert {"esd", "imma", "gift", "patronus", "aegis", "lora", "full_finetune", "textual_inversion"} <= methods


def test_the_tokenizer_of_random_weights_has_as_many_words_as_clips() -> None:
    found = gpu.tokenizer()

    assert len(found) == gpu.WORDS
    assert found.eos_token_id == gpu.WORDS - 1
    assert found("a cat", padding="max_length", return_tensors="pt").input_ids.shape == (1, 77)


def test_make_bench_names_this_package() -> None:
    done = subprocess.run(["make", "-n", "bench"], capture_output=True, text=True, check=True)

    assert "-m tests.bench" in done.stdout


@pytest.mark.parametrize("name", training.NAMES)
def test_a_line_runs_the_steps_it_says_and_no_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the method's own: those are a paper's, and take hours."""
    seen: list[Case] = []

    def note(case: Case, _: Any) -> Any:
        seen.append(case)
        return Ratio(value=1.0, low=1.0, high=1.0, processor=1.0, ours=1.0, theirs=1.0, pairs=1), 0.0

    monkeypatch.setattr(training, "in_turn", note)

    training.steps_of(name, at=Bed(None, None, {}))  # type: ignore[arg-type]

    fields = [f for f in ("steps", "d1_steps", "d2_steps", "u1_steps", "u2_steps") if hasattr(seen[0].method, f)]
    assert {getattr(seen[0].method, f) for f in fields} <= {seen[0].steps}
    assert seen[0].steps <= 60


def test_a_stopped_bench_keeps_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> Any:
        raise KeyboardInterrupt

    lines = (Line("one", lambda: [Row(what="one", value=1.5)]), Line("two", stopped))
    monkeypatch.setattr(command, "LINES", lines)

    with pytest.raises(KeyboardInterrupt):
        command.main(["--out", str(tmp_path)])

    assert "1.5" in (tmp_path / "bench.md").read_text()
