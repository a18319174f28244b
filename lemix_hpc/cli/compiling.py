"""A word while the simulator is compiled, which takes a minute or two once after an installation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer


@contextmanager
def told_when_compiling() -> Iterator[None]:
    """Say so on standard error, once, when numba begins to compile; nothing if all is in its cache."""
    from numba.core import event

    class Tell(event.Listener):  # type: ignore[misc]
        told = False

        def on_start(self, _event: Any) -> None:
            if not self.told:
                typer.echo("Compiling the simulator, once after an installation: a minute or two", err=True)
            self.told = True

        def on_end(self, _event: Any) -> None:
            pass

    with event.install_listener("numba:compile", Tell()):
        yield
