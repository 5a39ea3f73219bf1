"""Commands that only look: plan, status, list, show, doctor, schema."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from benchmark import config as configs
from benchmark.cli.common import Device, Json, Only, Source, StoreAt, app, chosen, out, refuse
from benchmark.errors import ConfigError, InputError


@app.command()
def plan(source: Source, only: Only = "", store: StoreAt = Path("store"), as_json: Json = False) -> None:
    """Show what a run would do, and what of it is done."""
    from benchmark import session

    try:
        job = session.prepare(
            chosen(source, only), source=source, out=None, store=store, claim=False, weights="optional"
        )
        show_plan(job, as_json)
    except InputError as error:
        refuse(error)


def show_plan(job: Any, as_json: bool) -> None:
    """Print counts of tasks and passes."""
    facts = job.facts()
    if as_json:
        out.print_json(json.dumps(facts))
        return
    if job.folder is None:
        out.print(f"{facts['model']}: no weights here; a run gets them, and what is done is known then", markup=False)
    out.print(f"{facts['cells']} cells, {facts['tasks']} tasks, {facts['left']} to run")
    for kind, count in facts["by_kind"].items():
        out.print(f"  {kind:9} {count['tasks']:5} tasks, {count['left']:5} to run")
    out.print(
        f"about {facts['passes']:,} U-Net passes in all; separate scripts would spend {facts['requested_passes']:,}"
    )
    for skip in facts["skipped"]:
        out.print(f"  skipped {skip['attack']} on {skip['defense']}, {skip['concept']}: {skip['reason']}")


@app.command()
def status(source: Source, only: Only = "", store: StoreAt = Path("store"), as_json: Json = False) -> None:
    """Show how far a run is: done, to run, and the tasks that are next."""
    from benchmark import session

    try:
        job = session.prepare(
            chosen(source, only), source=source, out=None, store=store, claim=False, weights="optional"
        )
    except InputError as error:
        refuse(error)
    left = job.left
    facts = job.facts(left)
    done = facts["tasks"] - facts["left"]
    if as_json:
        out.print_json(json.dumps(facts | {"done": done, "next": [task.label for task in left[:5]]}))
        return
    out.print(f"{done} of {facts['tasks']} tasks done")
    for task in left[:5]:
        out.print(f"  next: {escape(task.kind)} {escape(task.label)}")


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="defenses, attacks, metrics, concepts, sets, models or presets")],
    as_json: Json = False,
) -> None:
    """List what titer knows."""
    from benchmark import catalog

    try:
        found = catalog.listing(what)
    except InputError as error:
        refuse(error)
    if as_json:
        out.print_json(json.dumps(found))
        return
    for row in found:
        out.print(f"{row['name']:16} {escape(row['summary'])}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="What `titer list` names: a plug-in, a concept, a preset.")],
    as_json: Json = False,
) -> None:
    """Show a plug-in, a concept or a preset: its documentation, its fields and defaults, its fidelity."""
    from benchmark import catalog

    try:
        facts = catalog.details(name)
    except InputError as error:
        refuse(error)
    if as_json:
        out.print_json(json.dumps(facts))
        return
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=1)
        out.print(f"[bold]{key}[/]\n{escape(text)}")


@app.command()
def doctor(
    as_json: Json = False,
    mini: Annotated[bool, typer.Option("--mini", help="Measure the embedded model against its bar; a minute.")] = False,
    grid: Annotated[Path | None, typer.Option(help="With --mini: keep a picture of the images.")] = None,
    model: Annotated[str, typer.Option(help="Check this model instead: a preset, a folder or a hub id.")] = "",
    preset: Annotated[str, typer.Option(help="With --model: a config whose hours to estimate.")] = "",
    judge: Annotated[str, typer.Option(help="Calibrate this judge instead, such as torchvision:resnet50.")] = "",
    images: Annotated[Path | None, typer.Option(help="With --judge: a folder with a subfolder for each label.")] = None,
    concept: Annotated[str, typer.Option(help="With --judge: the concept whose labels it chooses from.")] = "",
    device: Device = "auto",
) -> None:
    """Check this installation: versions, device, every plug-in; or with --mini the embedded model's bar.

    With --model: access, weights, disk, memory, speed, and with --preset the hours that it would take here.
    With --judge: the calibration card of a judge, as JSON, from pictures whose labels are known.
    """
    from benchmark import catalog

    try:
        if judge:
            from benchmark.calibration import calibrate

            if images is None:
                raise ConfigError("expected --images FOLDER with --judge, got none: a subfolder for each label.")
            out.print_json(json.dumps(calibrate(judge, images, concept, lambda *, step, total, loss: None)))
            return
        if model:
            from benchmark.fitness import checks as of_model

            checks = of_model(model, chosen(preset, "") if preset else None, device)
        else:
            checks = catalog.mini_checks(grid) if mini else catalog.checks()
    except InputError as error:
        refuse(error)
    if as_json:
        out.print_json(json.dumps(checks))
    else:
        for check in checks:
            mark = "[green]ok[/] " if check["ok"] else "[red]bad[/]"
            out.print(f"{mark} {check['name']:24} {escape(str(check['found']))}")
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config, for editors: names and fields of every plug-in installed here."""
    out.print_json(json.dumps(configs.schema()))
