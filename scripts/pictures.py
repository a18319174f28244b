"""Draws the pictures of the documentation, docs/pictures: how the ranks of a run hang together, the live view, and a report.

python scripts/pictures.py

The last two are of a run of emulated stages on this machine, which takes about a minute. `--only ranks` needs no run.
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI

from lemix_hpc.cli.live.picture import pictures
from lemix_hpc.cli.live.screen import screen
from lemix_hpc.config.load import read_recipe
from lemix_hpc.launch.start import start
from lemix_hpc.records.reader import stream_run
from lemix_hpc.report.aggregates.gather import gather
from lemix_hpc.report.png.write import write_pictures

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURES = REPOSITORY / "docs" / "pictures"
RECIPE = REPOSITORY / "recipes" / "emulated-a100.yaml"
SHOWN_AT_S = 25.0
COLUMNS, ROWS = 100, 32
REPORT = ("stages", "latencies")

SERVING, TRAINING, PLAIN = "#2a7f4f", "#8a4fbf", "#555555"
Point = tuple[float, float]


def write_ranks(path: Path) -> None:
    """The same figure, the same file; its words are text, in a font that the reader has."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ranks"}):
        ranks().savefig(path, metadata={"Date": None})


def ranks() -> Figure:
    """One allocation of two nodes with two stages each."""
    figure = Figure(figsize=(9.0, 4.2))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0.0, 9.0), ylim=(0.0, 4.2))
    axes.axis("off")
    _box(axes, (1.75, 0.15), 7.1, 3.9, "", "#f6f6f6")
    axes.text(1.9, 3.8, "one Slurm allocation,\none MPI world", fontsize=9, va="top", color="#222222")
    _box(axes, (0.1, 2.35), 1.3, 0.75, "requests\nHTTP, traces, files", "#e3f3ea")
    _box(axes, (0.1, 0.75), 1.3, 0.75, "training text\nfiles, HTTP", "#efe5f8")
    _box(axes, (2.0, 1.5), 1.6, 1.1, "scheduler rank\nforecast, place,\nrelease, record", "#fff3d6")
    for number, low in enumerate((2.2, 0.35)):
        _box(axes, (4.1, low), 4.55, 1.55, f"node {number}: a replica of the model", "#ffffff")
        _box(axes, (4.3, low + 0.3), 1.1, 0.8, "leader\nqueue, batch", "#fff3d6")
        for stage, left in enumerate((5.85, 7.3)):
            _box(axes, (left, low + 0.3), 1.1, 0.8, f"stage {stage}\nlayers, device", "#dfeaf7")
        middle = low + 0.7
        _arrow(axes, (3.6, 2.05), (4.3, middle), PLAIN)
        _arrow(axes, (5.4, middle + 0.15), (5.85, middle + 0.15), SERVING)
        _arrow(axes, (6.95, middle + 0.15), (7.3, middle + 0.15), SERVING)
        _arrow(axes, (5.4, middle - 0.05), (5.85, middle - 0.05), TRAINING)
        _arrow(axes, (6.95, middle - 0.05), (7.3, middle - 0.05), TRAINING)
        _arrow(axes, (7.3, middle - 0.25), (6.95, middle - 0.25), TRAINING, dashed=True)
    _arrow(axes, (1.4, 2.72), (2.0, 2.25), SERVING)
    _arrow(axes, (1.4, 1.12), (2.0, 1.8), TRAINING)
    axes.text(2.0, 0.95, "serving first", color=SERVING, fontsize=9)
    axes.text(2.0, 0.7, "training in the gaps", color=TRAINING, fontsize=9)
    axes.text(2.0, 0.45, "dashed: backwards", color=TRAINING, fontsize=9)
    return figure


def _box(axes: Axes, corner: Point, width: float, height: float, text: str, color: str) -> None:
    """With its text in the middle, or above what is in it."""
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.08", fc=color, ec=PLAIN))
    holds_others = width > 2.0
    y = corner[1] + (height - 0.22 if holds_others else height / 2)
    axes.text(corner[0] + width / 2, y, text, ha="center", va="center", fontsize=9, color="#222222")


def _arrow(axes: Axes, start_: Point, end: Point, color: str, *, dashed: bool = False) -> None:
    style = "--" if dashed else "-"
    axes.add_patch(
        FancyArrowPatch(start_, end, arrowstyle="-|>", mutation_scale=9, color=color, ls=style, shrinkA=1, shrinkB=1)
    )


def live_and_report() -> None:
    """Of one run: the screen when it has gone on for a while, and the report's figures one below the other."""
    with tempfile.TemporaryDirectory() as home:
        started = start(read_recipe(RECIPE, []).recipe, "local", Path(home) / "emulated-a100")
        shown = None
        for picture in pictures(started):
            progress = picture.current
            if progress is not None and progress.state == "running" and progress.elapsed_s <= SHOWN_AT_S:
                shown = picture
        if shown is None:
            raise SystemExit(f"the run has never run: {started.run.path}")
        console = Console(width=COLUMNS, file=io.StringIO(), record=True, force_terminal=True, legacy_windows=False)
        console.print(screen(shown, COLUMNS, ROWS))
        console.save_svg(str(PICTURES / "live.svg"), title="lemix watch last", theme=MONOKAI)
        drawn = Path(home) / "pictures"
        write_pictures({"emulated-a100": gather(stream_run(started.run.path))}, drawn)
        _one_below_the_other([drawn / f"{name}.png" for name in REPORT]).save(PICTURES / "report.png", optimize=True)


def _one_below_the_other(files: list[Path]) -> Image.Image:
    images = [Image.open(file).convert("RGB") for file in files]
    whole = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    tops = itertools.accumulate((image.height for image in images), initial=0)
    for image, top in zip(images, tops, strict=False):
        whole.paste(image, (0, top))
    # Few colours: a third of the size, and nobody sees it.
    return whole.resize((whole.width * 2 // 3, whole.height * 2 // 3), Image.Resampling.LANCZOS).quantize(64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["ranks", "run"])
    only = parser.parse_args().only
    PICTURES.mkdir(parents=True, exist_ok=True)
    if only != "run":
        write_ranks(PICTURES / "ranks.svg")
    if only != "ranks":
        live_and_report()


if __name__ == "__main__":
    main()
