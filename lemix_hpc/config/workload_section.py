"""What the `serving` and `training` sections of a recipe share: text, and tables of lengths."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lemix_hpc.config.data_paths import as_list
from lemix_hpc.config.section import FilePath, Section

LengthTable = Literal["azure-conv", "azure-code", "mooncake-conversation", "lmsys-chat"]


class TextFields(Section):
    """Which fields of a JSON line hold the text: `text`, or `messages` (and `tools`), or `prompt` and `completion`."""

    text: str | None = Field(default=None, description="Name of the field that holds the text.")
    messages: str | None = Field(
        default=None,
        description="Name of the field that holds the messages of a [conversation](data.md#conversations).",
    )
    tools: str | None = Field(default=None, description="Name of the field that holds its tools; goes with `messages`.")
    prompt: str | None = Field(
        default=None,
        description="Name of the field that holds the prompt, on which no loss is taken; goes with `completion`.",
    )
    completion: str | None = Field(default=None, description="Name of the field that holds the completion.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        pair = self.prompt is not None or self.completion is not None
        if (self.text is not None) + (self.messages is not None) + pair > 1:
            raise ValueError("map one of `text`, `messages`, and `prompt` with `completion`")
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("`prompt` and `completion` go together")
        if self.tools is not None and (self.text is not None or pair):
            raise ValueError("`tools` goes with `messages`")
        return self

    @property
    def names(self) -> frozenset[str]:
        """The fields of a line that are looked at: those that are mapped, or all that it may have."""
        if self.text is not None:
            return frozenset((self.text,))
        if self.prompt is not None and self.completion is not None:
            return frozenset((self.prompt, self.completion))
        tools = self.tools or "tools"
        if self.messages is not None:
            return frozenset((self.messages, tools))
        return frozenset(("text", "messages", tools, "prompt", "completion"))


class TextData(Section):
    """Files of JSON lines, plain or compressed, or Parquet. With no `fields`, each line has `text`, or `messages`, or `prompt`
    and `completion`."""

    path: FilePath | Annotated[list[FilePath], Field(min_length=1)] = Field(
        description=(
            "[JSON lines](data.md#files): a file, a pattern, or a list of these; `.gz`, `.zst` and `.parquet`, too."
        )
    )
    fields: TextFields = TextFields()

    @property
    def where(self) -> str:
        """The paths, in words."""
        paths = as_list(self.path)
        return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
