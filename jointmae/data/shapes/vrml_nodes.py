"""The text of a VRML 2.0 file as nodes: those that can hold a surface, and of those only what places it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jointmae.errors import DataError

MAX_NODES = 300_000
MAX_NESTING = 256

CHILDREN = {  # what may lead from the root to a surface, and by which fields
    "root": ("children",),
    **dict.fromkeys(("Group", "Transform", "Anchor", "Billboard", "Collision"), ("children",)),
    "Switch": ("choice",),
    "LOD": ("level",),
    "Shape": ("geometry",),
}
_NUMBERS = {"translation": 3, "rotation": 4, "scale": 3, "scaleOrientation": 4, "center": 3, "whichChoice": 1}
_ARRAYS = {"point": 3, "coordIndex": 1}
_VALUES = frozenset('[]"+-.0123456789')  # what a value or a bracket begins with
_HEADER = "#VRML V2.0 utf8"

# Comma is white space. A bracket of nothing but numbers is one token, whatever its length.
_TOKEN = re.compile(r"""[\s,]*(\#[^\r\n]*|\[[-+0-9.eE,\s]*\]|[\[\]{}"]|[^\s,"\#\[\]{}]+)""", re.ASCII)
_AHEAD = re.compile(r"[\s,]*.?", re.ASCII)
_QUOTE = re.compile(r'[\\"]')


@dataclass(eq=False)
class Node:
    """One node; of a USE without a DEF the kind is "USE"."""

    kind: str
    label: str = ""  # of a USE that leads nowhere
    is_instance: bool = False  # of a PROTO of this file
    children: dict[str, list[Node]] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    arrays: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def number(self, name: str, default: list[float]) -> list[float]:
        """A field of one value."""
        return self.numbers.get(name, default)

    def array(self, name: str) -> NDArray[np.float64]:
        """A field of many values [n]; empty where the node has none."""
        return self.arrays.get(name, np.empty(0))


def parse(name: str, data: bytes) -> Node:
    """A node "root" whose children are the nodes of the file. Raises DataError for broken syntax."""
    text = data.decode("latin-1")  # one character a byte: what is not ASCII is in strings, names and comments only
    if not text.startswith(_HEADER):
        got = {b"#VRML V1": "VRML 1.0", b"\x1f\x8b": "a gzip file"}
        found = next((kind for start, kind in got.items() if data.startswith(start)), repr(data[:16]))
        raise DataError(name, "", f"got {found}, wanted a file that begins with {_HEADER!r}: convert it")
    return _Parser(name, text).root()


@dataclass(eq=False)
class _Open:
    """A node whose } has not come yet."""

    node: Node
    label: str  # what DEF called it
    field: str = ""  # the last one named in it


class _Parser:
    """One pass over the tokens; the nodes that are open are on a list, not on Python's stack."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._tokens = _Tokens(name, text)
        self._open = [_Open(Node("root"), "", "children")]
        self._label = ""  # of a DEF whose node comes next
        self._defined: dict[str, Node] = {}
        self._protos: set[str] = set()
        self._num_nodes = 0

    def root(self) -> Node:
        for token in self._tokens:
            if token == "DEF":
                self._label = self._tokens.word("a name behind DEF")
            elif token == "USE":
                label = self._tokens.word("a name behind USE")
                self._add(self._defined.get(label) or Node("USE", label))
            elif token in ("PROTO", "EXTERNPROTO"):
                self._pass_over_proto(token)
            elif token == "}":
                self._close_node()
            elif token[0] in _VALUES:
                continue  # of a field that does not matter; or brackets round nodes
            elif self._tokens.takes("{"):
                self._open_node(token)
            elif len(self._open) > 1:
                self._read_field(token)
        if len(self._open) > 1:
            raise self._tokens.error(f"the file ends inside of {self._open[-1].node.kind}")
        return self._open[0].node

    def _open_node(self, kind: str) -> None:
        node, label, self._label = Node(kind, is_instance=kind in self._protos), self._label, ""
        self._add(node)
        if kind == "Script":  # its fields are declarations, and may have USE in them
            self._tokens.pass_over("}")
        else:
            self._open.append(_Open(node, label))

    def _close_node(self) -> None:
        closed = self._open.pop()
        if not self._open:
            raise self._tokens.error("got }, wanted the end of the file")
        if closed.label:  # only now: a node cannot be its own child
            self._defined[closed.label] = closed.node

    def _add(self, child: Node) -> None:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or len(self._open) > MAX_NESTING:
            limits = f"{MAX_NODES:,} nodes, {MAX_NESTING} levels"
            raise DataError(self._name, "", f"got more than {limits}: is it a single shape?")
        parent = self._open[-1]
        if parent.field in CHILDREN.get(parent.node.kind, ()) or parent.field == "coord":
            parent.node.children.setdefault(parent.field, []).append(child)

    def _read_field(self, name: str) -> None:
        self._open[-1].field, node = name, self._open[-1].node
        if name in _NUMBERS and node.kind in ("Transform", "Switch"):
            node.numbers[name] = self._tokens.numbers(name, _NUMBERS[name])
        elif name in _ARRAYS and node.kind in ("Coordinate", "IndexedFaceSet"):
            node.arrays[name] = self._tokens.array(name, _ARRAYS[name])

    def _pass_over_proto(self, kind: str) -> None:
        """Its nodes are not made: only its name is kept, for a surface may stand behind it."""
        self._protos.add(self._tokens.word(f"a name behind {kind}"))
        interface = self._tokens.next()
        if interface == "[":
            self._tokens.pass_over("]")
        elif interface[:1] != "[":
            raise self._tokens.error(f"{kind} without its interface in brackets")
        if kind == "PROTO":
            if not self._tokens.takes("{"):
                raise self._tokens.error("PROTO without a body")
            self._tokens.pass_over("}")


class _Tokens:
    """The tokens of a text, one after the other; comments are left out, a string is one `"`."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text, self._place = name, text, 0

    def __iter__(self) -> Iterator[str]:
        while token := self.next():
            yield token

    def next(self) -> str:
        """The next token; empty at the end."""
        while match := _TOKEN.match(self._text, self._place):
            self._place = match.end()
            token = match[1]
            if token == '"':
                self._pass_over_string()
            if token[0] != "#":
                return token
        return ""

    def _pass_over_string(self) -> None:
        while match := _QUOTE.search(self._text, self._place):
            self._place = match.end()
            if match[0] == '"':
                return
            self._place += 1  # what a backslash stands before
        raise self.error("a string does not end")

    def word(self, wanted: str) -> str:
        token = self.next()
        if not token or token[0] in '[]{}"':
            raise self.error(f"got {token[:20]!r}, wanted {wanted}")
        return token

    def takes(self, wanted: str) -> bool:
        """Whether this is what comes next; if so, it is taken."""
        before = self._place
        ahead = _AHEAD.match(self._text, before)
        if ahead and ahead[0][-1:] in (wanted, "#") and self.next() == wanted:
            return True
        self._place = before
        return False

    def pass_over(self, closing: str) -> None:
        """Go on behind the bracket that closes the one just taken."""
        depth = 1
        opening = {"}": "{", "]": "["}[closing]
        while depth:
            token = self.next()
            if not token:
                raise self.error(f"a bracket {opening} does not end")
            depth += (token == opening) - (token == closing)

    def numbers(self, name: str, count: int) -> list[float]:
        """A field of so many numbers."""
        return [float(x) for x in self._floats(name, [self.next() for _ in range(count)])]

    def array(self, name: str, count: int) -> NDArray[np.float64]:
        """A field of any number of numbers in brackets, or of `count` without."""
        token = self.next()
        if token == "[":  # with comments between the numbers
            words = []
            while (word := self.next()) != "]":
                words.append(word)
                if not word:
                    raise self.error(f"{name} does not end")
            return self._floats(name, words)
        if token[:1] == "[":
            return self._floats(name, token[1:-1].replace(",", " ").split())
        return self._floats(name, [token, *(self.next() for _ in range(count - 1))])

    def _floats(self, name: str, words: list[str]) -> NDArray[np.float64]:
        try:
            values = np.array(words, dtype=np.float64)
        except ValueError:
            raise self.error(f"{name} wants numbers") from None
        if not np.isfinite(values).all():
            raise self.error(f"{name} wants finite numbers")
        return values

    def error(self, what: str) -> DataError:
        line = self._text.count("\n", 0, self._place) + 1
        return DataError(self._name, f"line {line}", f"{what}: the file is damaged")
