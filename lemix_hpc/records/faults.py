"""What a server failed in, for the log: at length the first time, in a line after that, so that clients cannot fill it."""

from __future__ import annotations

import traceback


class Faults:
    """Faults are told apart by their type and the line of code that raised them."""

    def __init__(self) -> None:
        self._known: set[tuple[type[BaseException], str, int]] = set()

    def tell(self, what: str, error: BaseException) -> None:
        """Into the log: in what somebody failed, such as "vLLM failed in a call"."""
        last = traceback.extract_tb(error.__traceback__)[-1:]
        place = (last[0].filename, last[0].lineno or 0) if last else ("", 0)
        print(f"{what}: {type(error).__name__}: {str(error)[:300]} ({place[0]}:{place[1]})", flush=True)
        if (fault := (type(error), *place)) not in self._known:
            self._known.add(fault)
            print("".join(traceback.format_exception(error)), flush=True)
