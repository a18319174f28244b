"""A batch, as clients are told of it."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
OVER: frozenset[Status] = frozenset({"completed", "failed", "expired", "cancelled"})

WINDOWS_S = {"24h": 86400}
"""Completion windows, as OpenAI has them [s]."""


class Counts(msgspec.Struct, frozen=True):
    """Lines of a batch: `completed` with an answer of status 200, `failed` without."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class LineError(msgspec.Struct, frozen=True):
    """Why a batch was not begun. `line`: from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Errors(msgspec.Struct, frozen=True):
    data: list[LineError]
    object: Literal["list"] = "list"


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in seconds since the epoch. `owner`: the name of the key with which it came, as which alone it is seen."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: Errors | None = None
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None
    owner: str = ""
