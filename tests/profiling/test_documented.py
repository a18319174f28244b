"""docs/coefficients.md shows files that load, and names every key."""

import re
from pathlib import Path

import pytest
import yaml

from lemix_hpc.config.validation_messages import sections_in
from lemix_hpc.profiling.coefficients import CoefficientFile

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "coefficients.md").read_text()


def test_the_example_is_a_file() -> None:
    [example] = [block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if block.startswith("schema:")]
    assert CoefficientFile.model_validate(yaml.safe_load(example)).latency(4).stages == 4


def keys(model: type) -> set[str]:
    fields = model.model_fields.items()  # type: ignore[attr-defined]
    inner = {key for _, field in fields for section in sections_in(field.annotation) for key in keys(section)}
    return {field.alias or name for name, field in fields} | inner


@pytest.mark.parametrize("key", sorted(keys(CoefficientFile)))
def test_every_key_is_documented(key: str) -> None:
    assert f"`{key}`" in TEXT or re.search(rf"^ *{key}: ", TEXT, re.MULTILINE)
