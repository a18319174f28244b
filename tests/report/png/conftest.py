"""The run directories of the tests of records."""

from tests.records.conftest import empty_run, example_run, write_run

__all__ = ["empty_run", "example_run", "write_run"]
