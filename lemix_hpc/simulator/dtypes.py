"""The records that a simulated cluster is made of, and the names of what they hold. Times are in seconds, memory in bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NONE = -1
"""No task, no batch, no node."""

OPEN, FINISHED, REFUSED = range(3)
"""Outcomes of a task."""

FORWARDS, BACKWARDS, STEPS = range(3)
"""The queues of a stage: micro-batches for a forward or a backward, and on the first stage groups without their step."""

COPY = 5
"""The kind of a span in which a node takes over weights of another one, beside those of `lemix_hpc.policy.execution_rules`."""

Records = NDArray[np.void]

QUEUE = np.dtype([("head", np.int64), ("tail", np.int64)], align=True)

REQUEST = np.dtype(
    [
        # What it is. A turn of a conversation comes `think` seconds after the answer to the request before it, whose
        # `follower` it is.
        ("arrival", np.float64),
        ("prompt", np.int64),
        ("output", np.int64),
        ("think", np.float64),
        ("earliest", np.float64),
        ("follower", np.int64),
        ("patient", np.bool_),
        # Where it stands. Waiting requests of a node, and later turns that are due, are heaps by `key` [s].
        ("after_updates", np.int64),
        ("key", np.float64),
        ("order", np.int64),
        ("child", np.int64),
        ("sibling", np.int64),
        ("next", np.int64),
        ("node", np.int64),
        ("produced", np.int64),
        ("cached", np.int64),
        ("length", np.int64),
        ("part", np.int64),
        # Tokens of its cache for which there is memory.
        ("held", np.int64),
        # What became of it.
        ("outcome", np.int64),
        # Seconds of the response, to the first token, and for each further one.
        ("predicted", np.float64),
        ("predicted_first", np.float64),
        ("predicted_token", np.float64),
        ("placed", np.float64),
        ("first_token", np.float64),
        ("finished", np.float64),
        ("first_version", np.int64),
        ("last_version", np.int64),
    ],
    align=True,
)

PASSED = np.dtype([("passes", np.int64), ("partial", np.int64), ("start", np.float64), ("end", np.float64)], align=True)
"""How many passes of a request a stage has run, how many of them for a part of the prompt, when the first one began and the
last one ended."""

MICRO_BATCH = np.dtype(
    [
        ("group", np.int64),
        ("next", np.int64),
        ("since", np.float64),
        ("outcome", np.int64),
        ("node", np.int64),
        ("eligible", np.float64),
        ("placed", np.float64),
        ("finished", np.float64),
    ],
    align=True,
)

GROUP = np.dtype(
    [
        ("first", np.int64),
        ("size", np.int64),
        ("begun", np.bool_),
        ("next", np.int64),
        ("step", np.int64),
    ],
    align=True,
)

AT_STAGE = np.dtype([("forwards", np.int64), ("backwards", np.int64), ("sealed_behind", np.bool_)], align=True)
"""How much of a group has run on a stage, and whether all stages behind it are through."""

BATCH = np.dtype(
    [
        ("number", np.int64),
        ("size", np.int64),
        ("tokens", np.int64),
        ("squares", np.float64),
        ("cached", np.float64),
        ("prefills", np.int64),
        ("version", np.int64),
        ("generates", np.bool_),
        ("urgent", np.bool_),
        ("patient", np.bool_),
        ("since", np.float64),
        ("after_updates", np.int64),
        ("key", np.float64),
        ("order", np.int64),
        ("child", np.int64),
        ("sibling", np.int64),
        ("next", np.int64),
    ],
    align=True,
)
"""Those that wait on a stage are a heap; `next` chains those that are not in use. `urgent`, `patient`: interactive requests, or
batch requests, are in it."""

NODE = np.dtype(
    [
        ("waiting", np.int64),
        ("patient_waiting", np.int64),
        ("in_flight", np.int64),
        ("generating", np.int64),
        ("at_first_stage", np.int64),
        ("batches", np.int64),
        ("free", np.int64),
        ("changed", np.bool_),
        # Of a paced one: how long before their deadlines tokens are aimed at, since when the first stage is idle,
        # when a stage has trained last, what waits, and what is ready, with its first deadline (-inf: to be looked up).
        ("margin", np.float64),
        ("idle_since", np.float64),
        ("trained_at", np.float64),
        ("waiting_requests", np.int64),
        ("waiting_tokens", np.int64),
        ("waiting_squares", np.int64),
        ("waiting_cached", np.int64),
        ("waiting_prefills", np.int64),
        ("ready_requests", np.int64),
        ("ready_cached", np.int64),
        ("ready_deadline", np.float64),
        # Of its batch requests: those that are ready; when the first one is promoted; what they are owed; batches with them.
        ("patient_ready", np.int64),
        ("patient_cached", np.int64),
        ("promotes", np.float64),
        ("owed", np.float64),
        ("patient_in_flight", np.int64),
        # Batches with others, and when the next one will be due that these go into.
        ("urgent_in_flight", np.int64),
        ("urgent_due", np.float64),
    ],
    align=True,
)
"""A leader. `waiting`, `patient_waiting`: roots of the heaps of new requests, interactive and batch ones; `in_flight`,
`generating`: its batches, and those of them that generate; `free`: chain of unused batch records."""

STAGE = np.dtype(
    [
        # The pass that runs: its kind, what it is of, and the stretch of `planned` of its `left` pieces from `start` on.
        ("kind", np.int64),
        ("item", np.int64),
        ("start", np.float64),
        ("piece", np.float64),
        ("left", np.int64),
        ("planned", np.int64),
        # When the stage has last seen between two pieces that a way to or from the host is to begin or over.
        ("looked", np.float64),
        # The training pass that rests; NOTHING if there is none.
        ("resting", np.int64),
        ("resting_item", np.int64),
        ("resting_piece", np.float64),
        ("resting_left", np.int64),
        # Root of the heap of batches that wait.
        ("serves", np.int64),
        # Training's claim to time, and micro-batches between their passes.
        ("debt", np.float64),
        ("between", np.int64),
        # Seconds of training that the leader has not heard of: it does when a pass ends.
        ("trained", np.float64),
        # Weight updates, which go by the version that they make: the one in force, the newest that is open here, the newest
        # that all stages behind are ready for, and the newest that this stage has reported, since when.
        ("version", np.int64),
        ("opened", np.int64),
        ("behind", np.int64),
        ("told", np.int64),
        ("told_since", np.float64),
        # Commit markers that have come in the channel, and those that have gone.
        ("came", np.int64),
        ("went", np.int64),
    ],
    align=True,
)

MARKER = np.dtype([("version", np.int64), ("since", np.float64)], align=True)
"""A commit marker in front of a stage, since when."""

SPAN = np.dtype(
    [
        ("node", np.int64),
        ("stage", np.int64),
        ("task", np.int64),
        ("kind", np.int64),
        ("start", np.float64),
        ("end", np.float64),
        ("version", np.int64),
        ("batch", np.int64),
    ],
    align=True,
)
"""`kind`: as in `lemix_hpc.policy.execution_rules`, or COPY."""

STAGE_MEMORY = np.dtype(
    [
        # What never changes: bytes for tasks, and bytes for each token.
        ("limit", np.int64),
        ("cache_bytes", np.int64),
        ("activation_bytes", np.int64),
        # What is there now. Of what is away, `kept` is the largest, and `back` on the device again, in the space kept for it.
        ("cache", np.int64),
        ("activations", np.int64),
        ("kept", np.int64),
        ("back", np.int64),
        ("link_free", np.float64),
        # What is to be reported.
        ("peak", np.int64),
        ("peak_cache", np.int64),
        ("peak_activations", np.int64),
        ("offloads", np.int64),
        ("offloaded", np.int64),
        ("waits", np.int64),
        ("preemptions", np.int64),
        # Whether serving (1) and training (2) have found too little here since they wait, added up.
        ("lacks", np.int64),
    ],
    align=True,
)
"""The memory of a stage, bytes. `link_free`: when the link to the host is free again."""

CLAIM = np.dtype(
    [
        ("since", np.float64),
        ("asked", np.bool_),
        ("waits", np.int64),
        ("waited", np.float64),
        ("longest", np.float64),
        ("preemptions", np.int64),
        ("recomputed", np.int64),
    ],
    align=True,
)
"""Who waits for memory on a node (two each: serving, training) since when, inf if nobody does, and the waits so far [s].
`asked`: the first stage wants to run a forward."""

ABSENT, HELD, BEGUN, SPARED, LEAVING, AWAY, COMING, BACK = range(8)
"""Where the activations of a micro-batch are: nowhere, on the device, there while their backward runs, there as they were told
to leave too late, on their way, on the host, on their way back, back."""

ACTIVATION = np.dtype([("where", np.int64), ("until", np.float64), ("next", np.int64)], align=True)
"""Of a micro-batch on a stage, at micro-batch * stages + stage. `until`: when their way ends [s]."""

RUN = np.dtype(
    [
        ("now", np.float64),
        ("next_arrival", np.int64),
        ("listed", np.int64),
        ("due", np.int64),
        ("unserved", np.int64),
        ("next_group", np.int64),
        ("offered", np.int64),
        ("begun", np.int64),
        ("came", np.int64),
        ("refused", np.bool_),
        ("closed", np.bool_),
        ("steps", np.int64),
        ("ticked", np.float64),
        ("changed", np.int64),
        ("first_changed", np.int64),
        ("spans", np.int64),
        ("events", np.int64),
        ("measured", np.bool_),
    ],
    align=True,
)
"""The scheduler rank. `listed`: requests that come by themselves; `unserved`: those without an outcome; `due`: root of the
heap of later turns; `changed`: how many nodes to look at, from `first_changed` of their ring on; `came`: batches that have
come to any stage; `measured`: the policy has been told how long the pass took that ends next."""
