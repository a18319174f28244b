"""The page of a report, as it is written and as a browser shows it."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from benchmarks.html_report import write_records
from lemix_hpc.records.reader import stream_run
from lemix_hpc.records.schema import RunFacts, Span
from lemix_hpc.report.aggregates.gather import gather
from lemix_hpc.report.aggregates.views import WORK_COLORS
from lemix_hpc.report.build import summarise
from lemix_hpc.report.html.page import render_page
from lemix_hpc.report.shown_run import ShownRun
from tests.records.conftest import EXAMPLE_FACTS

RunBuilder = Callable[..., Path]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECTIONS = ["stages-0", "stage-time", "latencies", "over-time", "waits", "forecasts", "training", "memory", "placement"]
FIGURES = 20


def shown(run: Path, name: str) -> ShownRun:
    records = stream_run(run)
    return ShownRun(name, [("policy", records.facts.policy)], summarise(records), gather(records))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> ShownRun:
    """A run with something in every figure, and more work than is shown piece by piece."""
    run = tmp_path_factory.mktemp("run")
    write_records(run, 4000, nodes=2)
    return shown(run, "made-up")


@pytest.fixture(scope="module")
def page(made_up: ShownRun) -> str:
    return render_page([made_up])


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([\w-]+)">', page)[1:]


def test_the_page_has_a_section_for_each_question(page: str) -> None:
    assert sections(page) == SECTIONS
    assert page.count("data-root-id=") == FIGURES
    assert f'data-figures="{FIGURES}"' in page


def test_the_page_needs_nothing_beside_it(page: str) -> None:
    """What is fetched when a page is opened is named in one of these."""
    assert re.findall(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"(?!data:)", page) == []
    assert re.findall(r"url\(\s*['\"]?https?:", page.partition("</style>")[0]) == []
    assert len(page.encode()) < 2e6


def test_what_there_is_nothing_of_is_left_out(empty_run: Path, write_run: RunBuilder) -> None:
    page = render_page([shown(empty_run, "empty")])
    assert sections(page) == [] and 'data-figures="0"' in page
    write_run(msgspec.structs.replace(EXAMPLE_FACTS, spans="sampled"), [Span(0, 0, "", "step", 0.0, 1.0, 1)])
    page = render_page([shown(empty_run, "sampled")])
    assert sections(page) == ["stages-0"] and "One second in ten was written down" in page


def test_names_cannot_break_the_page(made_up: ShownRun) -> None:
    page = render_page([replace(made_up, name="<script>alert(1)</script>", about=[("model", "</dd><b>")])])
    assert "<script>alert(1)</script>" not in page and "</dd><b>" not in page


def test_what_should_not_be_overlooked(write_run: RunBuilder) -> None:
    facts = RunFacts("pack", "torch", 1, 1, [1.0], 0.1, 3.0, 0, malformed_lines=3, skipped_steps=2)
    page = render_page([shown(write_run(facts), "broken")])
    assert "3 input lines left out" in page
    assert "2 optimizer steps skipped, since their gradients were not finite" in page


def test_pages_of_several_and_of_large_runs_are_small(made_up: ShownRun, tmp_path: Path) -> None:
    """What is drawn of each run gets less where there are more of them, and stages that are too many are left out."""
    write_records(tmp_path, 12_000, nodes=40)
    large = shown(tmp_path, "large")
    assert "16 more stages are not shown." in (page := render_page([large]))
    assert len(page.encode()) < 2e6
    several = render_page([made_up, large, *(replace(large, name=f"large {number}") for number in range(1))])
    assert len(several.encode()) < 2e6
    assert sections(several)[:3] == [f"stages-{number}" for number in range(3)]
    assert "stage 1, mean of 32 nodes" in several
    assert "Small figures are ratios to made-up." in several


@dataclass(frozen=True)
class Visit:
    """What a browser made of a page: its text when all was drawn, and what it said in its console."""

    page: str
    console: list[str]


def browse(page: Path, *options: str) -> Visit:
    """Open a page in a browser that nobody sees."""
    if BROWSER is None:
        pytest.skip("there is no chromium here")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")
    done = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--enable-logging=stderr"),
            *(f"--disable-{what}" for what in quiet),
            f"--user-data-dir={page.parent / 'profile'}",
            "--virtual-time-budget=20000",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Visit(done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line])


@pytest.fixture
def written(page: str, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(page)
    return path


PRINT = """<script>(function print() {
  const page = document.body.dataset;
  if (page.drawn === undefined) { setTimeout(print, 20); return; }
  dispatchEvent(new Event("beforeprint"));
  const copies = [...document.querySelectorAll("figure .paper canvas")];
  page.printed = copies.filter((copy) => copy.width > 100 && copy.height > 100).length;
  dispatchEvent(new Event("afterprint"));
  page.left = document.querySelectorAll(".paper").length;
})()</script></body>"""


def test_a_browser_draws_and_prints_all_figures_without_a_complaint(page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", PRINT))
    visit = browse(path, "--dump-dom")
    assert [line for line in visit.console if "[bokeh" not in line] == []
    assert f'data-drawn="{FIGURES}" data-printed="{FIGURES}" data-left="0"' in visit.page
    assert set(SECTIONS) <= set(re.findall(r'<section id="([\w-]+)">', visit.page))


@pytest.mark.parametrize(
    ("scheme", "paper"),
    [
        pytest.param("1", (255, 255, 255), id="light", marks=pytest.mark.slow),
        pytest.param("0", (22, 24, 28), id="dark"),
    ],
)
def test_the_page_is_light_or_dark_as_the_reader_likes(written: Path, scheme: str, paper: tuple[int, int, int]) -> None:
    picture = written.with_suffix(".png")
    browse(
        written, f"--screenshot={picture}", "--window-size=1200,4600", f"--blink-settings=preferredColorScheme={scheme}"
    )
    image = Image.open(io.BytesIO(picture.read_bytes())).convert("RGB")
    colors = {color: count for count, color in image.getcolors(1 << 24) or []}
    assert max(colors, key=lambda color: colors[color]) == paper
    for kind in ("prefill", "decode", "forward", "backward"):
        red, green, blue = bytes.fromhex(WORK_COLORS[kind][1:])
        assert colors.get((red, green, blue), 0) > 500, f"{kind} is seen"
    # Text on the canvases: its ink is dark on light paper, and light on dark.
    ink = (34, 34, 34) if scheme == "1" else (230, 230, 230)
    assert colors.get(ink, 0) > 500
