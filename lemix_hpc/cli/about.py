"""What a run is of, for the heads of its reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lemix_hpc.launch.rundir import RunDir


def model_of(run: RunDir) -> str:
    """As the recipe names it, or what the stage times of an emulated run are of; empty if nobody knows."""
    import yaml

    found = []
    for path in (run.recipe, run.path / "coefficients.yaml"):
        try:
            found.append(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, yaml.YAMLError):
            found.append(None)
    recipe, coefficients = (each if isinstance(each, dict) else {} for each in found)
    model = recipe.get("model")
    model = model if isinstance(model, dict) else {}
    if model.get("path"):
        return str(model["path"])
    if isinstance(model.get("config"), dict):
        return f"{model['config'].get('model_type')}, initialised at random"
    return f"{coefficients.get('model', '')} on {coefficients.get('hardware', '')}" if coefficients else ""
