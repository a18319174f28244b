"""The rows of docs/inputs.md."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.inputs.cases import CASES
from tests.inputs.files import REPOSITORY, Arguments, write_recipe

DOCUMENT = REPOSITORY / "docs" / "inputs.md"
KINDS = {"Recipes of engines that compute": "torch", "Recipes with vLLM": "vllm", "vLLM's own arguments": "vllm"}


@dataclass(frozen=True)
class Row:
    section: str
    name: str
    message: str
    code: int

    def make(self, directory: Path) -> Arguments:
        """The arguments of `lemix` for this input, whose files are made in a directory."""
        if self.name in CASES:
            return CASES[self.name](directory)
        return [*write_recipe(directory, KINDS.get(self.section, "emulated")), *shlex.split(self.name)]

    def is_in(self, printed: str) -> bool:
        """Whether the message is there, with anything in the place of `...`."""
        pattern = ".*?".join(re.escape(part.strip()) for part in self.message.split("..."))
        return re.search(pattern, " ".join(printed.split()), re.DOTALL) is not None


def rows() -> list[Row]:
    """Those that are inputs of `lemix run`, in order."""
    found, section = [], ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        cells = [cell.strip() for cell in re.findall(r"(?<=\|)[^|]+(?=\|)", line)]
        if len(cells) == 3 and cells[2] in ("0", "2") and cells[1].startswith("`"):
            is_option = cells[0].lstrip("` ").startswith("--set ") and cells[0] not in CASES
            found.append(Row(section, _code(cells[0]) if is_option else cells[0], _code(cells[1]), int(cells[2])))
    return found


def _code(cell: str) -> str:
    return cell.strip("`").strip()
