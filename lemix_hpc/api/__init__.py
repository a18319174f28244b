"""What a Python program can do with recipes and runs; `import lemix_hpc` has all of it. See docs/python.md."""

from lemix_hpc.api.recipes import load
from lemix_hpc.api.runs import Run, RunError, rows, run, submit
from lemix_hpc.api.studies import compare, simulate
from lemix_hpc.config.errors import UserError

__all__ = ["Run", "RunError", "UserError", "compare", "load", "rows", "run", "simulate", "submit"]
