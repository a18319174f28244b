"""`lemix plan`: what a run takes of memory, before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.cli.run import Json, Overrides, RecipePath

if TYPE_CHECKING:
    from rich.table import Table

    from lemix_hpc.config.recipe import Recipe
    from lemix_hpc.engines.memory_advice import Gpus, Layout
    from lemix_hpc.engines.memory_plan import StagePlan


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="NxSIZE", help="The GPUs of a host, such as 8x80GB: how to use them.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Add up the memory that each stage of a run takes. Exit code 1 if it does not fit."""
    from lemix_hpc.config.load import read_recipe
    from lemix_hpc.engines.memory_advice import Gpus, best, changes_that_fit, fits, layouts

    loaded = read_recipe(recipe, overrides or [])
    content = loaded.recipe
    host = None if gpus is None else Gpus.parse(gpus)
    cuda = host is not None or content.engine.device == "cuda"
    plans, capacity = _plans(content, cuda=cuda), _capacity(content.policy.memory.capacity_gb, host)
    fitting = capacity is None or fits(plans, capacity)
    computes = content.engine.computes
    keys = changes_that_fit(content, capacity, cuda=cuda) if computes and not fitting and capacity is not None else []
    ways = layouts(content, host) if computes and host is not None else []
    if as_json:
        typer.echo(json.dumps(_as_json(plans, capacity, keys, ways, best(ways))))
    else:
        _print(plans, capacity, keys, ways, best(ways), cuda=cuda, vllm=content.engine.kind == "vllm")
    if not fitting:
        raise typer.Exit(1)


def _plans(recipe: Recipe, *, cuda: bool) -> Sequence[StagePlan]:
    from lemix_hpc.engines.memory_plan import plan_from_file, plan_memory
    from lemix_hpc.profiling.coefficients import load_coefficients
    from lemix_hpc.run_setup.in_flight import planned_in_flight
    from lemix_hpc.run_setup.memory_limits import micro_batch_tokens

    coefficients = recipe.engine.coefficients
    if recipe.engine.computes or coefficients is None:
        return plan_memory(recipe, cuda=cuda)
    file = load_coefficients(coefficients)
    return plan_from_file(recipe, file, planned_in_flight(recipe), micro_batch_tokens(recipe))


def _capacity(capacity_gb: float | None, host: Gpus | None) -> float | None:
    """Bytes of one device, None if nobody says."""
    if host is not None:
        return host.bytes
    return None if capacity_gb is None else capacity_gb * 1e9


def _print(
    plans: Sequence[StagePlan],
    capacity: float | None,
    keys: Sequence[str],
    ways: Sequence[Layout],
    chosen: Layout | None,
    *,
    cuda: bool,
    vllm: bool,
) -> None:
    from rich.console import Console

    from lemix_hpc.engines.memory_advice import fits

    console = Console()
    console.print(stage_table(plans, cuda=cuda))
    if capacity is not None:
        bad = [str(each.stage) for each in plans if not fits([each], capacity)]
        size = f"{capacity / 1e9:.1f} GB"
        if bad:
            console.print(f"Does not fit into {size}: stage {', '.join(bad)}.")
            console.print(f"Each of these would make it fit: {'; '.join(keys)}." if keys else "No single key helps.")
        else:
            console.print(f"Fits into {size} a stage.")
    if ways:
        console.print(_layout_table(ways))
        console.print(_advice(chosen, vllm=vllm))


def _advice(chosen: Layout | None, *, vllm: bool) -> str:
    if chosen is None:
        return "No way to cut these GPUs fits. Take more or larger ones, or a smaller model."
    keys = [f"nodes.stages: {chosen.stages}", f"nodes.count: {chosen.replicas} for each host"]
    if chosen.offload:
        keys.append("training.offload_optimizer: true")
    if vllm:
        keys.append(f"engine.vllm.kv_cache_gb: {chosen.cache / 1e9:.0f} at most")
    return f"Best: {'; '.join(keys)}."


def print_stages(recipe: Recipe) -> None:
    """The table alone, beside what a dry run prints."""
    from rich.console import Console

    from lemix_hpc.engines.memory_plan import plan_memory

    cuda = recipe.engine.device == "cuda"
    Console(stderr=True).print(stage_table(plan_memory(recipe, cuda=cuda), cuda=cuda))


def stage_table(plans: Sequence[StagePlan], *, cuda: bool) -> Table:
    """A column for each stage, a row for each use of memory; GB."""
    from rich.table import Table

    table = Table(title="memory of a node's stages, GB")
    table.add_column("")
    for each in plans:
        table.add_column(f"stage {each.stage}", justify="right")
    table.add_row("layers", *(f"{each.layers.start}-{each.layers.stop - 1}" for each in plans))
    millions = [f"{each.parameters / 1e6:,.1f}" for each in plans if each.parameters is not None]
    if millions:
        table.add_row("weights, millions", *millions)
    table.add_section()
    for name in plans[0].device:
        table.add_row(name, *(_gb(each.device[name]) for each in plans))
    where = "on its GPU" if cuda else "in its process"
    table.add_row(where, *(_gb(each.on_device) for each in plans), style="bold", end_section=True)
    for name in plans[0].host:
        table.add_row(name, *(_gb(each.host[name]) for each in plans))
    if plans[0].host:
        table.add_row("beside it, on the host", *(_gb(each.on_host) for each in plans), style="bold")
    return table


def _layout_table(ways: Sequence[Layout]) -> Table:
    from rich.table import Table

    table = Table(title="ways to use the GPUs of a host")
    for name in ("stages", "replicas", "optimizer", "fullest GPU, GB", "left for KV, GB", "host memory, GB", "fits"):
        table.add_column(name, justify="left" if name in ("optimizer", "fits") else "right")
    for way in ways:
        table.add_row(
            str(way.stages),
            str(way.replicas),
            "offloaded" if way.offload else "on the GPU",
            _gb(way.fullest),
            _gb(way.cache) if way.cache > 0 else "-",
            _gb(way.host),
            "yes" if way.fits else "no",
        )
    return table


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 1e8 else f"{size / 1e9:,.3f}"


def _as_json(
    plans: Sequence[StagePlan],
    capacity: float | None,
    keys: Sequence[str],
    ways: Sequence[Layout],
    chosen: Layout | None,
) -> dict[str, object]:
    """Bytes."""
    stages = [
        {
            "stage": each.stage,
            "layers": [each.layers.start, each.layers.stop],
            "parameters": each.parameters,
            "device": dict(each.device),
            "host": dict(each.host),
        }
        for each in plans
    ]
    found = [
        {
            "stages": way.stages,
            "replicas": way.replicas,
            "offload": way.offload,
            "fullest": way.fullest,
            "kv_cache": way.cache,
            "host": way.host,
            "fits": way.fits,
            "best": way == chosen,
        }
        for way in ways
    ]
    return {"stages": stages, "capacity": capacity, "keys_that_would_fit": list(keys), "layouts": found}
