"""Draws what people see of a run in each of its states: the live view on 80 and 120 columns, and the page of a report.

python scripts/screens.py [--only live|page]

The live view is of runs on the Slurm cluster that the shell is set up for, such as the one on one machine
(docs/devcluster.md): a job that waits behind another one, starts, runs, is asked to stop, and one that fails. Runs lie in the
directory of the environment variable LEMIX_RUNS. The page needs chromium, and pdftoppm of poppler-utils for its print.
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI

from lemix_hpc.cli.live.picture import Picture, pictures
from lemix_hpc.cli.live.screen import screen
from lemix_hpc.cli.live.words import phase
from lemix_hpc.cli.main import app
from lemix_hpc.config.load import read_recipe
from lemix_hpc.launch.cancel import stop
from lemix_hpc.launch.place import runs_root
from lemix_hpc.launch.start import StartedRun, start

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURES = REPOSITORY / "docs" / "pictures"
WIDTHS, ROWS = (80, 120), 32
STOPPED_AFTER_S = 20.0
SLURM = ["cluster.kind=slurm", "cluster.time='00:10:00'", "nodes.count=2"]
LONG_ANSWERS = ["serving.mode=generate", "serving.max_new_tokens=600", "serving.source.rate=4"]
BREAKS = ["training.on_nan=stop", "training.learning_rate=1.0e+30", "training.gradient_clipping=null"]
SEEN = {"dark": "--blink-settings=preferredColorScheme=0", "light": "--blink-settings=preferredColorScheme=1"}


def draw_live() -> None:
    """One picture of each state, as it is for the first time, or for some time where it goes on."""
    blocker = _sbatch("--exclusive", "--nodes=3", "--time=10", "--wrap=sleep 600")
    try:
        run = _start("emulated-a100", [*SLURM, *LONG_ANSWERS])
        seen = _states(run, lambda: _run("scancel", blocker))
        failed = _start("quickstart", [*SLURM, *BREAKS])
    finally:
        _run("scancel", blocker)
    *_, seen["failed"] = pictures(failed)
    for state, picture in seen.items():
        for width in WIDTHS:
            console = Console(width=width, file=io.StringIO(), record=True, force_terminal=True, legacy_windows=False)
            console.print(screen(picture, width, ROWS))
            console.save_svg(str(PICTURES / f"live-{state}-{width}.svg"), title="lemix watch last", theme=MONOKAI)


def _states(run: StartedRun, unblock: Callable[[], None]) -> dict[str, Picture]:
    """From the queue to the end. `unblock` lets it start, once Slurm has said why it waits."""
    seen: dict[str, Picture] = {}
    for picture in pictures(run):
        key, progress = phase(picture).key, picture.current
        if key.startswith("pending") and picture.job is not None and picture.job.reason not in (None, "None"):
            if "pending" not in seen:
                unblock()
            seen.setdefault("pending", picture)
        elif progress is not None and progress.state == "starting":
            seen["starting"] = max(seen.get("starting", picture), picture, key=_built)
        elif key == "running" and progress is not None:
            seen["running"] = picture
            if progress.elapsed_s > STOPPED_AFTER_S:
                stop(run.run, run.record)
        elif key == "draining":
            seen["draining"] = picture
    return seen


def _built(picture: Picture) -> int:
    """Something is to be seen where some engines are there, and not all."""
    progress = picture.current
    return progress.built if progress is not None and progress.built < progress.engines else 0


def _start(recipe: str, changes: list[str]) -> StartedRun:
    path = REPOSITORY / "recipes" / f"{recipe}.yaml"
    return start(read_recipe(path, changes).recipe, "slurm", None)


def _sbatch(*arguments: str) -> str:
    done = subprocess.run(
        ["sbatch", "--parsable", *arguments], cwd=runs_root(), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def draw_page() -> None:
    """Of a simulated run with training and without: light, dark, and its first sheet of paper."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        os.environ |= {"LEMIX_RUNS": str(home), "XDG_STATE_HOME": str(home)}
        recipe, page = REPOSITORY / "recipes" / "emulated-a100.yaml", home / "report.html"
        for command in (
            ["simulate", str(recipe), "--out", str(home / "a100")],
            ["report", str(home / "a100"), "--serve-only", "--html", str(page)],
        ):
            app(command, standalone_mode=False)
        told = (
            page.read_text()
            .replace(str(home), "/shared/me/runs")
            .replace(f"from {socket.gethostname()} on", "from login1 on")
        )
        page.write_text(told)
        for mode, option in SEEN.items():
            drawn = home / f"{mode}.png"
            _chromium(home, page, option, f"--screenshot={drawn}", "--window-size=1280,2600")
            _small(drawn, PICTURES / f"page-{mode}.png")
        paper = home / "page.pdf"
        _chromium(home, page, SEEN["dark"], f"--print-to-pdf={paper}", "--no-pdf-header-footer")
        _run("pdftoppm", "-png", "-r", "72", "-singlefile", str(paper), str(home / "paper"))
        _small(home / "paper.png", PICTURES / "page-print.png")


def _chromium(home: Path, page: Path, *options: str) -> None:
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={home / 'profile'}")
    subprocess.run(
        ["chromium", *quiet, "--virtual-time-budget=20000", *options, page.as_uri()], capture_output=True, check=True
    )


def _small(drawn: Path, to: Path) -> None:
    image = Image.open(drawn).convert("RGB")
    if image.width > 900:
        image = image.resize((900, image.height * 900 // image.width), Image.Resampling.LANCZOS)
    image.quantize(128, kmeans=1).save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["live", "page"])
    only = parser.parse_args().only
    if only != "page":
        draw_live()
    if only != "live":
        draw_page()


if __name__ == "__main__":
    main()
