"""A YAML file together with where each of its keys stands, so that a mistake can be reported by line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from lemix_hpc.config.errors import UserError

KeyPath = tuple[str | int, ...]

# The scalars of YAML 1.2: with PyYAML's own 1.1 rules `1:00:00` is the number 3600, `1e-4` is text and `no` is false.
_SCALARS = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}


MOST_VALUES = 20_000
"""In a file, anchors spelled out each time: a recipe has some hundred."""


def _construct_bool(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    word = node.value.lower()
    if word not in ("true", "false"):
        raise ValueError(f"{node.value!r} is neither true nor false")
    return bool(word == "true")


def _construct_int(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value)


def _construct_float(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


class Loader(yaml.SafeLoader):
    """A safe loader that knows the scalars above and no others."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (`<<`), as long as they do not multiply."""
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            raise _too_many(node)


class Dumper(yaml.SafeDumper):
    """Quotes text that `Loader`, or a reader with YAML 1.1 rules, would take for something else."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
    Dumper.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("^<<$"), ["<"])
# Tags make no Python objects of other kinds, such as dates or bytes.
Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "str", "seq", "map")
}
Loader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)
Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


@dataclass(frozen=True)
class Document:
    """Plain data, the line (from 1) of each key path in it, and the keys given twice as (path, line, first line)."""

    data: Any
    lines: dict[KeyPath, int]
    duplicates: list[tuple[KeyPath, int, int]]


def parse_document(text: str, source: str) -> Document:
    """Parse one YAML document; `source` names it in messages. Raises UserError for text that is not YAML."""
    try:
        loader = Loader(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    try:
        node = loader.get_single_node()
        document = Document(None, {}, [])
        if node is None:
            return document
        _locate(node, (), (), loader, document)
        return Document(loader.construct_document(node), document.lines, document.duplicates)
    except yaml.MarkedYAMLError as error:
        raise UserError(_syntax_message(error, source)) from error
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: lists or sections are nested too deep") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def _locate(node: yaml.Node, path: KeyPath, around: tuple[yaml.Node, ...], loader: Loader, document: Document) -> None:
    """Fill in `lines` and `duplicates` below `node`; `around`: the nodes that it is in."""
    if node in around:
        raise yaml.MarkedYAMLError(problem="an anchor contains itself", problem_mark=node.start_mark)
    around = (*around, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note((*path, index), item, document)
            _locate(item, (*path, index), around, loader, document)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                document.duplicates.append(((*path, key), line, seen[key]))
            seen.setdefault(key, line)
        loader.flatten_mapping(node)
        for key_node, value_node in node.value:
            child = (*path, str(key_node.value))
            _note(child, key_node, document)
            _locate(value_node, child, around, loader, document)


def _note(path: KeyPath, node: yaml.Node, document: Document) -> None:
    document.lines[path] = node.start_mark.line + 1
    if len(document.lines) > MOST_VALUES:
        raise _too_many(node)


def _too_many(node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES} values", problem_mark=node.start_mark)


def _syntax_message(error: yaml.MarkedYAMLError, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{source}:{mark.line + 1}" if mark else source
    what = error.problem or error.context or "cannot be parsed"
    hint = ""
    if "\\t" in what:
        hint = "; indent with spaces, not tabs"
    elif "mapping values are not allowed" in what:
        hint = "; the line above may lack a ':' or this one has a ':' too many (put text that contains ': ' in quotes)"
    return f"{where}: not valid YAML: {what}{hint}"
