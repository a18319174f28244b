"""Classes of requests: `interactive` ones have token deadlines, `batch` ones a completion window."""

from __future__ import annotations

from typing import Literal

ServiceClass = Literal["interactive", "batch"]
"""Of a request."""
