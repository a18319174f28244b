"""What users change of the policy while a run goes on (`lemix set`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.policy_section import Policy
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.records.settings import LIVE_KEYS, SETTINGS, read_settings
from lemix_hpc.run_setup.memory_limits import longest_hold
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout

LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Change:
    """The policy from now on, and the values in YAML of those of its keys that are new, by key."""

    policy: Policy
    values: dict[str, str]


class LiveSettings:
    """Looks at the file in which users leave what they change. `recipe`: what the run does now; `now` gives seconds."""

    def __init__(self, run_dir: Path, recipe: Recipe, now: Callable[[], float]) -> None:
        self._path = run_dir / SETTINGS
        self._recipe = run_dir / "recipe.yaml"
        self._policy = recipe.policy
        self._now = now
        self._looked = now()
        # What was changed before is in the recipe by now, or was changed since that was read.
        self._seen: tuple[int, int, int] | None = None

    def look(self) -> Change | None:
        """What is new, if anything. Cheap on most turns: the file is looked at every second, and read when it has changed."""
        if self._now() - self._looked < LOOK_EVERY_S:
            return None
        self._looked = self._now()
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        try:
            policy = load_recipe(self._recipe, read_settings(self._path.parent)).policy
        except (UserError, OSError) as error:
            # `lemix set` writes no such file; whoever has written it by hand is to see why nothing changes.
            print(f"{self._path} cannot be used, and nothing is changed: {error}", flush=True)
            return None
        values = {
            key: _shown(_value(policy, key)) for key in LIVE_KEYS if _value(policy, key) != _value(self._policy, key)
        }
        self._policy = policy
        return Change(policy, values) if values else None

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def pass_on(policy: Policy, layout: Layout, mailbox: Mailbox) -> None:
    """Tell leaders and stages what they go by from now on."""
    for node in range(layout.nodes):
        mailbox.send(layout.leader(node), Inbox.LEADER, m.HoldTraining(longest_hold(policy)))
        for stage in range(layout.stages):
            mailbox.send(layout.worker(node, stage), Inbox.STAGE, m.ShareTime(policy.minimum_training_share))


def _value(policy: Policy, key: str) -> object:
    return getattr(policy, key.removeprefix("policy."))


def _shown(value: object) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("...\n").strip()
