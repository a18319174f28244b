import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.build import Device, check_sharing


def test_gpus_are_shared_only_when_the_recipe_says_so() -> None:
    one, other = Device("cuda:0", "GPU-1"), Device("cuda:0", "GPU-2")
    recipe = Recipe()
    check_sharing(recipe, [None, one, other])
    check_sharing(recipe, [None, Device("cpu"), Device("cpu")])
    with pytest.raises(UserError, match=r"2 stage ranks on this host share 1 GPUs.*engine.share_devices: true"):
        check_sharing(recipe, [one, Device("cuda:1", "GPU-1")])
    check_sharing(Recipe.model_validate({"engine": {"share_devices": True}}), [one, one])
