"""A mistake in a recipe: the key it is about, and a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from lemix_hpc.config.document import KeyPath


@dataclass(frozen=True)
class Problem:
    path: KeyPath
    text: str

    @property
    def key(self) -> str:
        return ".".join(map(str, self.path))
