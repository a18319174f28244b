"""Comparisons as lines: which there are, over what, and what is drawn of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from PIL import Image

from lemix_hpc.config.errors import UserError
from lemix_hpc.report.html.sweep import render_sweeps
from lemix_hpc.report.png.sweep import write_sweeps
from lemix_hpc.report.sweep import Sweep, SweepRow, dash_of, parts, read_sweep, table
from lemix_hpc.studies.compare import as_json, as_sweep, summed_up
from lemix_hpc.studies.sweep import Cell, Done

POLICIES = ("pack", "separate")


def sweep_of(rates: tuple[float | None, ...], shares: tuple[float | None, ...]) -> Sweep:
    """Throughput is the rate, and half of it for `separate`; nobody has times per token."""
    rows = []
    for rate in rates:
        for share in shares:
            for policy in POLICIES:
                served = (rate or 1.0) / (1 + (policy == "separate"))
                means = {"throughput": served, "slo_5": 0.5, "ttft_p99_ms": None, "p99_ms": None if rate == 3 else 9.0}
                ratios = {"throughput": 1.0 if policy == "pack" else 0.5, "slo_5": 1.0, "ttft_p99_ms": None}
                rows.append(SweepRow(policy, rate, share, 1, means, ratios))
    return Sweep("pack", rows)


def test_what_compare_writes_is_what_is_read(tmp_path: Path) -> None:
    figures = {"throughput": 2.0, "slo_5": 0.25, "p99_ms": None}
    done = [
        Done(Cell(policy, rate, None, seed), None, {**figures, "throughput": rate / (2 - seed)})
        for rate in (4.0, 8.0)
        for policy in POLICIES
        for seed in (0, 1)
    ]
    path = tmp_path / "sweep.json"
    path.write_text(as_json(done, rows := summed_up(done, "pack"), "pack"))
    sweep = read_sweep(path)
    assert sweep == as_sweep(rows, "pack")
    assert (sweep.baseline, sweep.policies, len(sweep.rows)) == ("pack", list(POLICIES), 4)
    [part] = parts(sweep)
    lines = {panel.title: panel.lines for panel in part.panels}
    assert list(lines) == [
        "Responses within 5 T0",
        "Responses within 5 T0 / pack's",
        "Tasks per second",
        "Tasks per second / pack's",
    ]
    assert (lines["Tasks per second"][1].xs, lines["Tasks per second"][1].ys) == ([4.0, 8.0], [3.0, 6.0])


def test_lines_go_over_what_was_varied() -> None:
    both = parts(sweep_of((3.0, 1.0, 2.0), (0.3, None)))
    assert [(part.axis, part.fixed) for part in both] == [
        ("rate", "training share of the recipe"),
        ("rate", "training share 0.3"),
    ]
    [throughput] = [panel for panel in both[0].panels if panel.title == "Tasks per second"]
    assert [(line.xs, line.ys) for line in throughput.lines] == [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [0.5, 1.0, 1.5]),
    ]
    # A figure that a load lacks leaves its point out.
    [tail] = [panel for panel in both[0].panels if panel.title == "Response, 99 %, ms"]
    assert tail.lines[0].xs == [1.0, 2.0]
    assert [part.axis for part in parts(sweep_of((1.0,), (0.1, 0.2)))] == ["training_share"]
    assert parts(sweep_of((1.0,), (None,))) == []


def test_the_table_has_every_load_with_ratios_to_the_baseline() -> None:
    rows = list(table(sweep_of((2.0,), (0.3,))))
    assert [(row.policy, [(cell.value, cell.ratio) for cell in cells]) for row, cells in rows] == [
        ("pack", [("50.0 %", ""), ("2.00", ""), ("9.00", "")]),
        ("separate", [("50.0 %", "1.00"), ("1.00", "0.50"), ("9.00", "")]),
    ]


def test_the_page_and_the_pictures_have_each_of_them(tmp_path: Path) -> None:
    sweeps = {"<b>one": sweep_of((1.0, 2.0), (0.3, 0.6)), "two": sweep_of((1.0,), (None,))}
    page = render_sweeps(sweeps)
    assert "<b>one" not in page and "&lt;b&gt;one · training share 0.6" in page
    # Attainment, throughput and their ratios, and the tail without any.
    assert 'data-figures="10"' in page and page.count("data-root-id=") == 10
    assert page.count('<th scope="row">separate</th>') == 5
    written = write_sweeps(sweeps, tmp_path / "pictures")
    assert [path.name for path in written] == ["sweep-0-0.png", "sweep-0-1.png"]
    assert Image.open(written[0]).width == 1440


def test_more_policies_than_colours_are_told_apart() -> None:
    rows = [SweepRow(f"p{n}", float(rate), None, 1, {"throughput": 1.0}, {}) for n in range(9) for rate in (1, 2)]
    [part] = parts(Sweep("p0", rows))
    assert [dash_of(line) for line in part.panels[0].lines] == ["solid"] * 7 + ["dashed"] * 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{}", "is no file of `lemix compare --json`"),
        ("[" * 100_000, "is no file of `lemix compare --json`"),
        ('{"baseline": "pack", "rows": []}', "has no rows"),
        ('{"baseline": "pack", "rows": [{"policy": 1}]}', "is no file of"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(content)
    with pytest.raises(UserError, match=told):
        read_sweep(path)
    with pytest.raises(UserError, match="there is no such file"):
        read_sweep(tmp_path / "none.json")


def test_rows_are_data(tmp_path: Path) -> None:
    sweep = sweep_of((1.0, 2.0), (None,))
    path = tmp_path / "sweep.json"
    path.write_bytes(msgspec.json.encode(sweep))
    assert read_sweep(path) == sweep
