"""The golden cases: situations with what the policy and a run make of them, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def golden_cases(kind: str) -> list[dict[str, Any]]:
    """All cases of a kind: `alg1` forecasts and scores a task, `lc` lengths, `des` plays a whole run."""
    content = json.loads(Path(__file__).with_name("policy_cases.json").read_text())
    cases: list[dict[str, Any]] = [case for case in content["cases"] if case["kind"] == kind]
    assert cases, f"no golden cases of kind {kind}"
    return cases
