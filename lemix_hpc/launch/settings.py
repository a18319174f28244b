"""Change keys of a run's recipe while it goes on."""

from __future__ import annotations

from collections.abc import Sequence

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.launch.states import FINAL, run_state
from lemix_hpc.records.settings import LIVE_KEYS, change_settings, read_settings


def change(run: RunDir, record: RunRecord, changes: Sequence[str]) -> None:
    """Take down `KEY=VALUE`s; the run looks for them about every second, and so does each later attempt.

    Raises UserError for keys that cannot change, values that a recipe must not have, and a run that has ended.
    """
    given: dict[str, str] = {}
    for text in changes:
        key, equals, value = text.partition("=")
        if not equals or key not in LIVE_KEYS:
            raise UserError(
                f"{text}: cannot be changed while a run goes on; give KEY=VALUE with one of {', '.join(LIVE_KEYS)}"
            )
        if "\n" in value:
            raise UserError(f"{key}: the value has a line break")
        given[key] = value
    load_recipe(run.recipe, [*read_settings(run.path), *changes])
    state = run_state(run, record)
    if state in FINAL:
        raise UserError(f"{run.id} has ended as {state}: there is nothing to change")
    change_settings(run.path, given)
