"""docs/policy.md names every placement with its score, and every knob with its default, as the registry has them."""

import re
from pathlib import Path

from lemix_hpc.policy.placements import KNOBS, PLACEMENTS, users_of

DOCS = Path(__file__).resolve().parents[2] / "docs"


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the table with this first heading, row by row."""
    text = (DOCS / page).read_text()
    [rows] = re.findall(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows.splitlines()]


def test_placements_are_documented_with_their_scores() -> None:
    documented = {name.strip("`"): score for name, score in table("policy.md", "`placement`")}
    assert documented == {name: placement.score for name, placement in PLACEMENTS.items()}
    assert list(documented) == list(PLACEMENTS)


def test_knobs_are_documented_with_their_defaults_and_users() -> None:
    rows = {name.strip("`"): (default, of) for name, default, of in table("policy.md", "key in `policy`")}
    assert list(rows) == list(KNOBS)
    for name, (default, of) in rows.items():
        assert re.findall(r"`([a-z-]+)`", of) == users_of(name)
        knob = KNOBS[name]
        known = {user: PLACEMENTS[user].defaults.get(name, knob.default) for user in users_of(name)}
        values = [value for value in dict.fromkeys(known.values()) if value is not None]
        assert [float(number) for number in re.findall(r"[0-9.]*[0-9]", default.replace("T0", ""))] == values
        for user, value in known.items():
            assert len(values) < 2 or re.search(rf"\b{value:g} (?:T0|s) for `{user}`", default)


def test_recipes_name_every_placement_and_the_users_of_every_knob() -> None:
    rows = dict(
        re.findall(
            r"^\| `policy\.([a-z_0-9]+)` \|[^|]*\|[^|]*\| (.*) \|$", (DOCS / "recipes.md").read_text(), re.MULTILINE
        )
    )
    assert set(re.findall(r"`([a-z-]+)`", rows["placement"])) == set(PLACEMENTS)
    for name in KNOBS:
        assert set(re.findall(r"`([a-z-]+)`", rows[name])) & set(PLACEMENTS) == set(users_of(name))
