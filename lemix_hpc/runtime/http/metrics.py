"""All nodes' Prometheus metrics as one text, and the run's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lemix_hpc.records.tally import KeyUse

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Figures:
    """The run at one moment. `requests`: by outcome; `weight_versions`: the newest of each node; `loss`: of late; `keys`: by
    the name of each."""

    requests: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0
    tokens_in_flight: int = 0
    weight_versions: Sequence[int] = ()
    steps: int = 0
    trained: int = 0
    samples_waiting: int = 0
    loss: float | None = None
    keys: Mapping[str, KeyUse] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DoorFigures:
    """The endpoint at one moment. `refused`: calls whose key did not do, by status; `turned_away`: connections that were closed
    for being slow, idle or too many; `connections`: open now; `health`: how often that was asked."""

    refused: Mapping[int, int] = field(default_factory=dict)
    turned_away: int = 0
    connections: int = 0
    health: int = 0


@dataclass(slots=True)
class _Family:
    header: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)


def exposition(nodes: Sequence[str | None], figures: Figures, door: DoorFigures | None = None) -> str:
    """`nodes`: each node's own text, None for one that did not give it. Every sample of theirs gets the label `node`."""
    families: dict[str, _Family] = {}
    for node, text in enumerate(nodes):
        if text is not None:
            _merge(families, node, text)
    lines = [line for family in families.values() for line in (*family.header, *family.samples)]
    up = [int(text is not None) for text in nodes]
    return "\n".join([*lines, *_own(figures, up), *_of_the_door(door)]) + "\n"


def _merge(families: dict[str, _Family], node: int, text: str) -> None:
    family = _Family()
    for line in text.splitlines():
        if line.startswith(("# HELP ", "# TYPE ")):
            name = line.split(" ", 3)[2]
            family = families.setdefault(name, _Family())
            # Of the first node that has it: they all run the same server.
            kind = line[: len("# HELP ")]
            if not any(known.startswith(kind) for known in family.header):
                family.header.append(line)
        elif line and not line.startswith("#"):
            family.samples.append(_with_node(line, node))


def _with_node(sample: str, node: int) -> str:
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        separator = "" if rest.startswith("}") else ","
        return f'{name}{{node="{node}"{separator}{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{node="{node}"}} {value}'


def _own(figures: Figures, up: Sequence[int]) -> Iterator[str]:
    outcomes = {f'{{outcome="{outcome}"}}': count for outcome, count in figures.requests.items()}
    yield from _family("lemix_requests_total", "counter", "Requests that are over, by outcome.", outcomes)
    yield from _family("lemix_requests_in_flight", "gauge", "Requests under way.", {"": figures.in_flight})
    tokens = {"": figures.tokens_in_flight}
    yield from _family(
        "lemix_tokens_in_flight", "gauge", "Tokens of their prompts, and that they may generate.", tokens
    )
    versions = _by_node(figures.weight_versions)
    yield from _family("lemix_weight_version", "gauge", "The newest weight version that a node served.", versions)
    yield from _family("lemix_training_steps_total", "counter", "Optimizer steps of all nodes.", {"": figures.steps})
    yield from _family("lemix_training_micro_batches_total", "counter", "Trained micro-batches.", {"": figures.trained})
    waiting = {"": figures.samples_waiting}
    yield from _family("lemix_training_samples_waiting", "gauge", "Posted samples not yet trained on.", waiting)
    if figures.loss is not None:
        yield from _family("lemix_training_loss", "gauge", "Mean loss of the last micro-batches.", {"": figures.loss})
    yield from _by_key(figures.keys)
    yield from _family("lemix_node_up", "gauge", "Whether a node's server gave its metrics.", _by_node(up))


def _by_key(keys: Mapping[str, KeyUse]) -> Iterator[str]:
    if not keys:
        return
    named = {f'{{key="{name}"': use for name, use in keys.items()}
    requests = {f"{name}}}": use.requests for name, use in named.items()}
    yield from _family("lemix_key_requests_total", "counter", "Requests that are over, by the client's key.", requests)
    prompts = {f'{name},kind="prompt"}}': use.prompt_tokens for name, use in named.items()}
    outputs = {f'{name},kind="output"}}': use.output_tokens for name, use in named.items()}
    yield from _family("lemix_key_tokens_total", "counter", "Tokens of these.", prompts | outputs)


def _of_the_door(door: DoorFigures | None) -> Iterator[str]:
    if door is None:
        return
    refused = {f'{{status="{status}"}}': count for status, count in sorted(door.refused.items())}
    yield from _family("lemix_http_refused_total", "counter", "Calls refused for their key.", refused)
    text = "Connections closed for being slow, idle or too many."
    yield from _family("lemix_http_turned_away_total", "counter", text, {"": door.turned_away})
    yield from _family("lemix_http_connections", "gauge", "Open connections.", {"": door.connections})
    yield from _family("lemix_http_health_total", "counter", "How often /health was asked.", {"": door.health})


def _by_node(values: Sequence[int]) -> dict[str, int]:
    return {f'{{node="{node}"}}': value for node, value in enumerate(values)}


def _family(name: str, kind: str, text: str, samples: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples.items():
        yield f"{name}{labels} {value}"
