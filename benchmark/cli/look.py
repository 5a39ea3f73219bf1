"""Commands that only look: plan, status, list, show, doctor, schema."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from benchmark.cli.common import Device, Json, Only, Source, StoreAt, app, chosen, out, refusing, tell
from benchmark.config import config as configs
from benchmark.errors import ConfigError
from benchmark.plan.matrix import Skip
from benchmark.plan.skips import grouped


def planned(source: str, only: str, store: Path) -> Any:
    """The run as it would be, without its folder and maybe without its weights."""
    from benchmark import session

    return session.prepare(chosen(source, only), source=source, out=None, store=store, claim=False, weights="optional")


@app.command()
def plan(source: Source, only: Only = "", store: StoreAt = Path("store"), as_json: Json = False) -> None:
    """Show what a run would do, and what of it is done."""
    with refusing():
        show_plan(planned(source, only, store), as_json)


def show_plan(job: Any, as_json: bool) -> None:
    """Print counts of tasks and passes."""
    facts = job.facts() | job.reading()
    tell(facts, plan_lines(facts, has_weights=job.folder is not None), as_json=as_json)


def plan_lines(facts: Mapping[str, Any], *, has_weights: bool) -> Iterator[str]:
    """A plan's counts of cells, tasks and passes, and what it skips."""
    if not has_weights:
        yield f"{escape(facts['model'])}: no weights here; a run gets them, and what is done is known then"
    yield f"{facts['cells']} cells, {facts['tasks']} tasks, {facts['left']} to run"
    for kind, count in facts["by_kind"].items():
        yield f"  {kind:9} {count['tasks']:5} tasks, {count['left']:5} to run"
    yield f"about {facts['passes']:,} U-Net passes in all; separate scripts would spend {facts['requested_passes']:,}"
    if more := facts["later_passes"]:
        yield f"  and at most {more:,} more to draw the worst attack of each row anew (`confirm`)"
    if cost := facts["assumed"]:
        speed, held, most = cost["samples_a_second"], cost["gib"], cost["gib_full"]
        yield f"about {cost['hours']:,.0f} hours on one H100 at {speed:g} samples a second in bfloat16, and"
        yield f"  {held:,.0f} GiB for the model, {most:,.0f} to train its whole denoiser, beside activations: assumed;"
        yield "  `titer doctor --model` measures yours"
    for label, count in facts["pictures"].items():
        yield f"{escape(label)}: {count} pictures of yours"
    for line in facts["given_up"]:
        yield escape(line)
    for line in facts["left_out"]:
        yield f"left out of {escape(line)}"
    if facts["cut_prompts"]:
        count, longest = facts["cut_prompts"], facts["longest_prompt"]
        which = f"{count} prompts are" if count > 1 else "1 prompt is"
        yield f"  {which} longer than the model reads: the longest has {longest}"
        yield "  tokens. What stands behind the limit, 77 for CLIP, is cut, and the rows carry a flag: shorten them"
    for group in grouped(Skip(**skip) for skip in facts["skipped"]):
        yield escape(f"  skipped {group.told}: {group.reason}")


@app.command()
def status(source: Source, only: Only = "", store: StoreAt = Path("store"), as_json: Json = False) -> None:
    """Show how far a run is: done, to run, and the tasks that are next."""
    with refusing():
        job = planned(source, only, store)
    left = job.left
    facts = job.facts(left)
    done = facts["tasks"] - facts["left"]
    tell(
        facts | {"done": done, "next": [task.label for task in left[:5]]},
        (
            f"{done} of {facts['tasks']} tasks done",
            *(f"  next: {escape(task.kind)} {escape(task.label)}" for task in left[:5]),
        ),
        as_json=as_json,
    )


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="defenses, attacks, metrics, concepts, sets, models or presets")],
    as_json: Json = False,
) -> None:
    """List what titer knows."""
    from benchmark.cli import catalog

    with refusing():
        found = catalog.listing(what)
    tell(found, (f"{row['name']:16} {escape(row['summary'])}" for row in found), as_json=as_json)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="A plug-in, a concept or a preset that `titer list` names, or a card: FILE.yaml.")
    ],
    as_json: Json = False,
) -> None:
    """Show a plug-in, a concept or a preset: its documentation, its fields and defaults, its fidelity."""
    from benchmark.cli import catalog

    with refusing():
        facts = catalog.details(name)
    texts = ((key, value if isinstance(value, str) else json.dumps(value, indent=1)) for key, value in facts.items())
    tell(facts, (f"[bold]{key}[/]\n{escape(text)}" for key, text in texts), as_json=as_json)


@app.command()
def doctor(
    as_json: Json = False,
    mini: Annotated[bool, typer.Option("--mini", help="Measure an embedded model against its bar; a minute.")] = False,
    grid: Annotated[Path | None, typer.Option(help="With --mini: keep a picture of the images.")] = None,
    model: Annotated[
        str, typer.Option(help="This model instead: a preset, a folder or a hub id; with --mini: which.")
    ] = "",
    preset: Annotated[str, typer.Option(help="With --model: a config whose hours to estimate.")] = "",
    judge: Annotated[str, typer.Option(help="Calibrate this judge instead, such as torchvision:resnet50.")] = "",
    images: Annotated[Path | None, typer.Option(help="With --judge: a folder with a subfolder for each label.")] = None,
    concept: Annotated[str, typer.Option(help="With --judge: the concept whose labels it chooses from.")] = "",
    device: Device = "auto",
) -> None:
    """Check this installation: versions, device, every plug-in; or with --mini an embedded model's bar.

    With --model: access, weights, disk, memory, speed, and with --preset the hours that it would take here.
    With --judge: the calibration card of a judge, as JSON, from pictures whose labels are known.
    """
    from benchmark.cli import catalog

    with refusing():
        if judge:
            from benchmark.cli.calibration import calibrate

            if images is None:
                raise ConfigError("expected --images FOLDER with --judge, got none: a subfolder for each label.")
            out.print_json(json.dumps(calibrate(judge, images, concept, lambda *, step, total, loss: None)))
            return
        if mini:
            checks = catalog.mini_checks(model or "mini", grid)
        elif model:
            from benchmark.cli.doctor import checks as of_model
            from benchmark.model.devices import present

            present(device)
            checks = of_model(model, chosen(preset, "") if preset else None, device)
        else:
            checks = catalog.checks()
    marks = {True: "[green]ok[/] ", False: "[red]bad[/]"}
    lines = (f"{marks[check['ok']]} {check['name']:24} {escape(str(check['found']))}" for check in checks)
    tell(checks, lines, as_json=as_json)
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config, for editors: names and fields of every plug-in installed here."""
    out.print_json(json.dumps(configs.schema()))
