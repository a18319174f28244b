"""What users see while the policy and the simulator are compiled."""

from __future__ import annotations

import logging

import typer

NOTE = "Compiling the policy for this kind of processor: once after each installation, some 20 seconds."


def tell_of_compiling() -> None:
    """Say it on stderr when compiling begins, and if what was compiled cannot be kept. Nothing is imported for that."""
    logger = logging.getLogger("lemix_hpc.policy")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Once) for handler in logger.handlers):
        logger.addHandler(_Once())
    logger.propagate = False


class _Once(logging.Handler):
    """Many functions are compiled one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._told = set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = NOTE if record.levelno < logging.WARNING else f"warning: {record.getMessage()}"
        if text not in self._told:
            self._told.add(text)
            typer.echo(text, err=True)
