"""The placements by name: what each goes by, and the keys of a recipe that it uses. Data alone, read by all who name one.

Recipes, the scheduler, the simulator, studies and the tests of the documentation take names, keys and defaults from here.
What a placement does is in `placement_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Knob:
    """A number in the `policy` section of a recipe that only some placements use, not below `least`.

    `default` None: each placement has its own, in `Placement.defaults`.
    """

    name: str
    default: float | None
    least: float
    description: str


SPLIT_KNOBS = (
    Knob(
        "training_nodes",
        None,
        1,
        (
            "`separate`: how many nodes train; by default in proportion to `training.share`, half of them "
            "without one. `auto`: every split is tried, in simulation only."
        ),
    ),
    Knob("copy_every_steps", 1, 1, "`separate`: steps between copies of the weights to the serving nodes."),
)
"""Whole numbers: how a cluster is split into nodes that serve and nodes that train."""

SCORE_KNOBS = (
    Knob("lambda1", 0.15, 0.0, "First weight in the scores of `lemix` and `lemix-paper`."),
    Knob("lambda2", 0.05, 0.0, "Second weight in the scores of `lemix` and `lemix-paper`."),
    Knob(
        "tau",
        None,
        0.0,
        (
            "`lemix`: in units of T0, given together with `keep`; 2 by default. `lemix-paper`: in seconds, "
            "alone; 0.2 by default."
        ),
    ),
    Knob("keep", None, 0.0, "`lemix`: in units of T0, given together with `tau`; 5 by default."),
    Knob(
        "fill",
        0.8,
        0.0,
        ("`fill`: part of the time between tokens that passes of a node may take before requests go to another one."),
    ),
)
"""What scores are made with: compiled code has them as `rules.knobs.NAME`."""

KNOBS: Mapping[str, Knob] = {knob.name: knob for knob in SPLIT_KNOBS + SCORE_KNOBS}


@dataclass(frozen=True, slots=True)
class Placement:
    """A way to choose nodes. `score`: what it goes by, in the symbols of docs/policy.md.

    `knobs`: the keys that it uses; `defaults`: its own ones of those that have none in common; `together`: keys that are
    given together or not at all. `splits`: some nodes only serve and the others only train. `takes_turns`: it looks at no
    forecast.
    """

    name: str
    score: str
    knobs: tuple[str, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)
    together: tuple[str, ...] = ()
    splits: bool = False
    takes_turns: bool = False

    def knob_values(self, given: Mapping[str, float] | None = None) -> dict[str, float]:
        """The values of all `SCORE_KNOBS`, by name: as `given`, else the default. One that the placement has no use for
        and that has no default is 0."""
        own = {knob.name: self.defaults.get(knob.name, knob.default or 0.0) for knob in SCORE_KNOBS}
        return own | dict(given or {})


_ALL = (
    Placement("least-completion", "- completion: fe_{S-1}, for training be_0"),
    Placement(
        "lemix",
        "- min(II / (S T0), keep) - lambda1 max(0, W / T0 - tau) + lambda2 LC",
        knobs=("lambda1", "lambda2", "tau", "keep"),
        defaults={"tau": 2.0, "keep": 5.0},
        together=("tau", "keep"),
    ),
    Placement(
        "lemix-paper",
        "(- max(II / S - gap, tau) + lambda2 LC_pdf) / (lambda1 R), as published, for comparison",
        knobs=("lambda1", "lambda2", "tau"),
        defaults={"tau": 0.2},
    ),
    Placement("pack", "the first node that meets the limit with room, see below"),
    Placement(
        "separate",
        "- completion, within a fixed split: the last `training_nodes` nodes train, the others serve",
        knobs=("training_nodes", "copy_every_steps"),
        splits=True,
    ),
    Placement(
        "fill",
        "paced, of a request: L while L <= fill and its first token is in time, else - L; otherwise - completion",
        knobs=("fill",),
    ),
    Placement("round-robin", "turns, requests and training counted apart (the paper's NaiveMix)", takes_turns=True),
    Placement("random", "seeded", takes_turns=True),
    Placement("least-utilised", "- stage time given to the node lately (it fades in 20 T0)"),
)

PLACEMENTS: Mapping[str, Placement] = {placement.name: placement for placement in _ALL}
"""By name, in the order in which they are listed to people."""
DEFAULT, DEFAULT_PACED = "least-completion", "fill"
"""Where none is named: in general, and where decode is paced."""


def placement_named(name: str) -> Placement:
    """Raises ValueError, with the names that there are, when there is none of this name."""
    if name not in PLACEMENTS:
        raise ValueError(f"there is no placement {name!r}; there are {', '.join(PLACEMENTS)}")
    return PLACEMENTS[name]


def code(name: str) -> int:
    """The number of a placement in compiled code. Raises ValueError as `placement_named`."""
    return list(PLACEMENTS).index(placement_named(name).name)


def users_of(knob: str) -> list[str]:
    """The names of the placements that use a key."""
    return [placement.name for placement in _ALL if knob in placement.knobs]
