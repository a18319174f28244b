"""Ids of requests that are not clients', which no client may use."""

from __future__ import annotations

from itertools import islice

from lemix_hpc.workload.request_stream import RequestStream


class TakenIds:
    """Those of a workload, once it is known. Numbered ones need no memory; lines of a batch file have names of their own."""

    def __init__(self) -> None:
        self._numbered = 0
        self._named: frozenset[str] = frozenset()

    def of(self, requests: RequestStream) -> None:
        if all(request.id == "r0" for request in islice(requests.lengths(), 1)):
            self._numbered = len(requests)
        else:
            self._named = frozenset(request.id for request in requests.lengths())

    def __contains__(self, id: object) -> bool:
        if id in self._named:
            return True
        number = id.removeprefix("r") if isinstance(id, str) else ""
        # As long as a number of these may be, and written as they are.
        short = len(number) <= len(str(self._numbered)) and number.isdecimal()
        return short and id == f"r{int(number)}" and int(number) < self._numbered
