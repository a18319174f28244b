"""Each row about clients has a test."""

import ast

from tests.inputs.files import REPOSITORY
from tests.inputs.http_table import TESTS, http_rows
from tests.runtime.http.odd_calls import ODD_VALUES, REFUSED


def test_every_row_is_tested_and_every_test_is_there() -> None:
    assert sorted(http_rows()) == sorted([*TESTS, *REFUSED, *ODD_VALUES])
    assert len(http_rows()) > 45
    for path, _, name in (test.partition("::") for test in TESTS.values()):
        tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path} has no {name}"
