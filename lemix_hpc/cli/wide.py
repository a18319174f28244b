"""Tables with many columns."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def print_wide(table: Table) -> None:
    """As wide as it is: a table that is cut or folded cannot be read."""
    console = Console()
    wanted = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, wanted)).print(table)
