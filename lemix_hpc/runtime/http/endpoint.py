"""Everything that a run needs for clients and for batches of calls; most runs need nothing of it."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.serving_section import Http
from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextFields
from lemix_hpc.records.attempts import Attempt, lineage
from lemix_hpc.records.inheritance import Inheritance
from lemix_hpc.records.journal import Record
from lemix_hpc.records.key_file import keep_key
from lemix_hpc.records.line_chain import CountedFile, line_chain, put_together
from lemix_hpc.records.schema import RESULTS, SAMPLES
from lemix_hpc.runtime.http import descriptors
from lemix_hpc.runtime.http.answers import Answers
from lemix_hpc.runtime.http.batch_results import BatchResults
from lemix_hpc.runtime.http.call_router import CallRouter
from lemix_hpc.runtime.http.keys import KeyRing
from lemix_hpc.runtime.http.metrics import Figures
from lemix_hpc.runtime.http.munge import MungeUsers
from lemix_hpc.runtime.http.request_guard import Guard
from lemix_hpc.runtime.http.sample_intake import SampleIntake
from lemix_hpc.runtime.http.server import HttpServer, bind, url
from lemix_hpc.runtime.http.taken_ids import TakenIds
from lemix_hpc.runtime.transport.mailbox import Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.workload.api_lengths import context_of
from lemix_hpc.workload.load import Workload
from lemix_hpc.workload.samples import Sample, SampleQueue
from lemix_hpc.workload.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from lemix_hpc.runtime.http.batches.batch_api import BatchApi


class Endpoint:
    """Takes the address of the recipe's `serving.http` at once, if there is one: UserError if it cannot be had.

    `wake` ends the scheduler's sleep, from any thread; `now` gives seconds of the run; it closes at `end` by those, if not
    before. `inherited`: what the attempt goes on from.
    """

    def __init__(
        self,
        recipe: Recipe,
        attempt: Attempt,
        inherited: Inheritance,
        now: Callable[[], float],
        wake: Callable[[], None],
        end: float = math.inf,
    ) -> None:
        self._recipe = recipe
        self._attempt = attempt
        self._inherited = inherited
        self._now = now
        self._wake = wake
        self._end = end
        self._results: BatchResults | None = None
        self._server: HttpServer | None = None
        self._intake: SampleIntake | None = None
        self._router: CallRouter | None = None
        self._answers = Answers(inherited.answers, inherited.waiting.values())
        self._taken = TakenIds()
        self.address: str | None = None
        self.keys: str | None = None
        """The file with the keys that clients need."""
        self.samples: SampleQueue | None = None
        """What clients want to be trained on."""
        if recipe.serving is not None and recipe.serving.http is not None:
            self._prepare(recipe.serving.http, recipe.training)

    def _prepare(self, http: Http, training: Training | None) -> None:
        """All that takes time, before the run starts."""
        listener = bind(http)
        self._server, self.address = HttpServer(listener, self._wake), url(listener)
        # One for each thread: tokenizers are not for several.
        self._tokenizer = load_tokenizer(self._recipe.model)
        if training is not None:
            self.samples = SampleQueue(training, load_tokenizer(self._recipe.model))
            fields = training.data.fields if training.data is not None else TextFields()
            self._intake = SampleIntake(self._attempt, fields, self.samples, self._wake, self._before(SAMPLES))
        key_file = http.api_key_file or keep_key(self._attempt.run_dir, http.api_key)
        munge = MungeUsers(http.munge, os.getuid()) if http.munge is not None else None
        self.keys, guard = str(key_file), Guard(KeyRing(key_file), http.max_body_mb, munge=munge)
        descriptors.raise_limit()
        self._server.open(self._app(self._server, guard))

    def router(
        self,
        layout: Layout,
        mailbox: Mailbox,
        number: Callable[[], int],
        work: Workload,
        promise: Callable[[Record], None],
    ) -> CallRouter:
        """What carries the calls. `number` gives tasks their numbers; `promise` writes down what clients may count on."""
        self._answers.promise = promise
        if self._server is not None:
            self._taken.of(work.requests)
        if work.requests.demand.calls:
            self._results = BatchResults(self._attempt, () if self._before(RESULTS) else work.bad_calls)
        http = self._recipe.serving.http if self._recipe.serving is not None else None
        lasts = http.duration_s if http is not None else None
        return CallRouter(
            layout,
            mailbox,
            number,
            self._recipe.engine.timeout_s,
            server=self._server,
            end=min(math.inf if lasts is None else lasts, self._end),
            results=self._results,
        )

    @contextlib.contextmanager
    def open(self, router: CallRouter) -> Iterator[None]:
        """Answer clients meanwhile."""
        if self._server is None:
            yield
            return
        with self._answering(self._server, router):
            yield

    def _before(self, name: str) -> list[CountedFile]:
        """What earlier attempts have written."""
        return line_chain(lineage(self._attempt.run_dir), name)

    @property
    def posted(self) -> Sequence[Sample]:
        """What clients sent to earlier attempts."""
        return self._intake.posted if self._intake is not None else ()

    def sync(self) -> None:
        """Make safe on the disk what clients and batches were given. Raises OSError. From any thread."""
        if self._results is not None:
            self._results.sync()

    @property
    def trouble(self) -> str | None:
        """Why the disk does not take what batches were given, None while it does."""
        return self._results.trouble if self._results is not None else None

    def hold(self, why: str | None) -> None:
        """Turn clients away, since nothing can be promised to them, until `why` is None."""
        if self._server is not None:
            self._server.disk = why

    def close(self, timeout_s: float, over: Callable[[], bool]) -> None:
        """The last call. Raises OSError if the disk does not take what is left in `timeout_s`, or before it is `over`."""
        if self._results is not None:
            self._results.close(timeout_s, over)

    def put_together(self) -> None:
        """The run ends: results and samples of all attempts are one file each. Raises OSError."""
        for name in (RESULTS, SAMPLES):
            put_together(self._attempt.run_dir, self._before(name), name)

    @contextlib.contextmanager
    def _answering(self, server: HttpServer, router: CallRouter) -> Iterator[None]:
        self._router = router
        server.accept()
        print(
            f"OpenAI API: {self.address}/v1 on {platform.node()}; TERM to process {os.getpid()} closes it\n"
            f"keys of the API: {self.keys}",
            flush=True,
        )
        try:
            yield
        finally:
            server.close()
            if self._intake is not None:
                self._intake.close()

    def _figures(self) -> Figures:
        return Figures() if self._router is None else self._router.figures

    def _app(self, server: HttpServer, guard: Guard) -> Starlette:
        from lemix_hpc.runtime.http.app import AppContext, make_app

        return make_app(
            AppContext(
                server=server,
                guard=guard,
                nodes=self._recipe.nodes.count,
                tokenizer=self._tokenizer,
                context=context_of(self._recipe),
                now=self._now,
                figures=self._figures,
                answers=self._answers,
                samples=self._intake,
                taken=self._taken,
                batches=self._batches(server, guard),
            )
        )

    def _batches(self, server: HttpServer, guard: Guard) -> BatchApi:
        from lemix_hpc.runtime.http.batches.batch_api import BatchApi
        from lemix_hpc.runtime.http.batches.batch_runner import BatchRunner
        from lemix_hpc.runtime.http.batches.batch_store import BatchStore
        from lemix_hpc.runtime.http.batches.file_store import FileStore

        files, store = FileStore(self._attempt.run_dir), BatchStore(self._attempt, self._inherited.last)
        lost = set(self._inherited.lost)
        tokenizer = load_tokenizer(self._recipe.model)
        runner = BatchRunner(store, files, server, tokenizer, context_of(self._recipe), self._now, lost)
        return BatchApi(guard, lambda: server.refusal, files, store, runner)
