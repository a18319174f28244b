import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import LoadedRecipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.preflight import preflight


def changed(recipe, **sections):
    return LoadedRecipe(Recipe.model_validate({**recipe.model_dump(), **sections}), "r.yaml", {})


def test_a_split_is_not_searched_in_a_run(recipe):
    automatic = changed(
        recipe, nodes={"count": 2, "stages": 2}, policy={"placement": "separate", "training_nodes": "auto"}
    )
    with pytest.raises(UserError, match=r"policy\.training_nodes: auto works in simulation only; run `lemix compare"):
        preflight(automatic, "local")


def test_coefficients_of_a_kind_are_read(recipe, tmp_path):
    broken = tmp_path / "c.yaml"
    broken.write_text("nonsense: 1\n")
    kinds = [{"count": 1}, {"count": 1, "coefficients": broken}]
    with pytest.raises(UserError, match=r"nodes\.kinds\.1\.coefficients: .*c\.yaml"):
        preflight(changed(recipe, nodes={"count": 2, "stages": 2, "kinds": kinds}), "local")
