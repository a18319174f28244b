"""What the `serving` and `training` sections of a recipe share: text, and tables of lengths."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from lemix_hpc.config.section import FilePath, Section

LengthTable = Literal["azure-conv", "azure-code", "mooncake-conversation", "lmsys-chat"]


class TextFields(Section):
    """Which fields of a JSON line hold the text: `text` alone, or `prompt` and `completion`."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None

    @model_validator(mode="after")
    def _text_or_pair(self) -> Self:
        if self.text is not None and (self.prompt or self.completion):
            raise ValueError("map either `text`, or `prompt` and `completion`")
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("`prompt` and `completion` go together")
        return self


class TextData(Section):
    """JSON lines of text. With no `fields`, each line has `text`, or `prompt` and `completion`."""

    path: FilePath
    fields: TextFields = TextFields()
