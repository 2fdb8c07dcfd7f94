"""Reads pickles as data: a bounded interpreter of the opcodes. No class is looked up, nothing of the file is run.

A name in the file (``torch._utils._rebuild_tensor_v2``) stands for one of our own functions in a fixed table, which
only builds plain data; a name that is not in the table is refused. Lengths are checked against the bytes that are left
before anything is made, long byte strings stay views of the file, and operations, nesting and copies are limited, so
that memory and time stay in proportion to the file. The result is dicts, lists, tuples, sets, text, numbers, views of
the file and `Record`.

Opcodes: Python's ``pickletools`` documents each. Python's own ``pickle`` is not used: it allocates by the lengths and
memo indices that a file claims, and calls what it names.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastinv.errors import CheckpointError

MAX_OPERATIONS = 1_000_000  # a 1024x1024 network with its optimizer's state has some 50,000
MAX_DEPTH = 200
MAX_NODES = 2_000_000  # of the result when everything shared is counted as often as it is reached
MAX_SHARING = 8  # likewise the bytes of tensors, as a multiple of the file's; a training file may hold two twice
MAX_INTEGER_BYTES = 64
SHORT = 1024  # byte strings up to here are copied, longer ones stay views of the file


@dataclass(eq=False)
class Record:
    """An object of the file as data: where its class was, the class's name, the object's attributes."""

    module: str
    name: str
    state: dict


@dataclass(frozen=True, eq=False)
class Inert:
    """What a global name of a file stands for.

    ``make(*arguments)`` is called where the pickle would have called the global or made an object of that class;
    ``build(made, state)`` where it would have set the object's state. Both only put data together.
    """

    name: str
    make: Callable | None = None
    build: Callable | None = None


@dataclass(eq=False)
class Pending:
    """An object that a later opcode completes, such as an array; ``value`` is what it becomes in the result."""

    inert: Inert
    value: object = None


@dataclass
class Limits:
    """What may still be spent on one file, nested pickles included."""

    copied_bytes: int
    operations: int = MAX_OPERATIONS

    def work(self, count: int = 1) -> None:
        self.operations -= count
        if self.operations < 0:
            raise CheckpointError(f"it takes more than {MAX_OPERATIONS} operations to read, which no network needs")

    def copy(self, count: int) -> None:
        self.copied_bytes -= count
        if self.copied_bytes < 0:
            raise CheckpointError("it repeats its data more often than a checkpoint would")


MARK = object()


@dataclass
class _Machine:
    """The state of one run: where we are, the stack, the memo."""

    data: memoryview
    position: int
    names: Mapping[str, Inert]
    persistent: Callable | None
    limits: Limits
    stack: list = field(default_factory=list)
    memo: dict = field(default_factory=dict)

    def take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self.data) - self.position:
            raise CheckpointError(
                f"it is cut off or damaged: {count} bytes are announced at byte {self.position}, "
                f"{len(self.data) - self.position} are left"
            )
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: str):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        limit = min(len(self.data), self.position + SHORT)
        text = bytes(self.data[self.position : limit])
        length = text.find(b"\n")
        if length < 0:
            raise CheckpointError(f"it is cut off or damaged: a line has no end at byte {self.position}")
        self.position += length + 1
        return text[:length].decode("utf-8")

    def pop(self):
        if not self.stack or self.stack[-1] is MARK:
            raise CheckpointError(f"it is damaged: an operation at byte {self.position} finds no operand")
        return self.stack.pop()

    def pop_to_mark(self) -> list:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise CheckpointError(f"it is damaged: an operation at byte {self.position} finds no mark")

    def top(self, kinds):
        value = self.stack[-1] if self.stack else None
        if not isinstance(value, kinds):
            raise CheckpointError(f"it is damaged: an operation at byte {self.position} does not fit its operand")
        return value

    def push(self, value) -> None:
        self.stack.append(value)


def _integer(data: bytes | memoryview) -> int:
    if len(data) > MAX_INTEGER_BYTES:
        raise CheckpointError(f"it holds an integer of {len(data)} bytes")
    return int.from_bytes(data, "little", signed=True)


def _bytes(m: _Machine, count: int) -> None:
    view = m.take(count)
    m.push(bytes(view) if count <= SHORT else view)


def _text(m: _Machine, count: int) -> None:
    m.push(str(m.take(count), "utf-8", "surrogatepass"))


def _legacy_string(m: _Machine, count: int) -> None:
    """A str of Python 2: text as far as we care; arrays of that time keep their values in one."""
    view = m.take(count)
    m.push(str(view, "latin-1") if count <= SHORT else view)


def _put(m: _Machine, index: int) -> None:
    if not m.stack or m.stack[-1] is MARK:
        raise CheckpointError(f"it is damaged: nothing to remember at byte {m.position}")
    m.memo[index] = m.stack[-1]


def _get(m: _Machine, index: int) -> None:
    if index not in m.memo:
        raise CheckpointError(f"it is damaged: entry {index} is used at byte {m.position} but was never stored")
    m.push(m.memo[index])


def _global(m: _Machine, module, name) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
        raise CheckpointError(f"it is damaged: a name at byte {m.position} is no text")
    key = f"{module}.{name}"
    found = m.names.get(key)
    if found is None:
        raise CheckpointError(
            f"it asks for {key[:200]!r}, which no network needs; a file that names it may be harmful and is not read"
        )
    m.push(found)


def _weigh(m: _Machine, *values) -> None:
    """Counts the members of what a function goes through; else a short file could have a long list copied often."""
    m.limits.work(sum(len(value) for value in values if isinstance(value, (dict, list, tuple, set, frozenset))))


def _call(m: _Machine, function, arguments) -> None:
    if not isinstance(function, Inert) or function.make is None:
        what = function.name if isinstance(function, Inert) else f"a {type(function).__name__}"
        raise CheckpointError(f"it is damaged: {what} is used as a function at byte {m.position}")
    if not isinstance(arguments, tuple):
        raise CheckpointError(f"it is damaged: a call at byte {m.position} has no list of arguments")
    _weigh(m, arguments, *arguments)
    made = function.make(*arguments)
    m.push(Pending(function, made) if function.build else made)


def _build(m: _Machine) -> None:
    state = m.pop()
    target = m.top((dict, Record, Pending))
    _weigh(m, state, *(state if isinstance(state, tuple) else ()))
    if isinstance(target, Pending):
        target.value = target.inert.build(target.value, state)
        return
    if isinstance(state, tuple) and len(state) == 2:  # (attributes, those of __slots__)
        state = (state[0] or {}) | (state[1] or {}) if all(s is None or type(s) is dict for s in state) else state
    if state is None:
        return
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"it is damaged: an object's attributes at byte {m.position} are no names and values")
    (target if isinstance(target, dict) else target.state).update(state)


def plain_key(value):
    """A dict key or member of a set: plain and cheap to hash. Large integers, and tuples of integers, are refused: they
    can all be made to have the same hash."""
    small = isinstance(value, int) and abs(value) < 2**60
    texts = isinstance(value, tuple) and len(value) <= 8 and all(isinstance(part, str) for part in value)
    if value is None or small or texts or isinstance(value, (str, bytes, float)):
        return value
    raise CheckpointError(f"it uses a {type(value).__name__} as a key")


def _set_items(m: _Machine, items: list) -> None:
    target = m.top(dict)
    if len(items) % 2:
        raise CheckpointError(f"it is damaged: a key without a value at byte {m.position}")
    for index in range(0, len(items), 2):
        target[plain_key(items[index])] = items[index + 1]


def _add_items(m: _Machine, items: list) -> None:
    m.top(set).update(plain_key(item) for item in items)


def _persistent(m: _Machine) -> None:
    if m.persistent is None:
        raise CheckpointError("it refers to data outside itself")
    m.push(m.persistent(m.pop()))


def _tuple_of(count: int) -> Callable:
    return lambda m: m.push(tuple([m.pop() for _ in range(count)][::-1]))


def _new_object(m: _Machine, keywords: bool) -> None:
    named = m.pop() if keywords else {}
    if named != {}:
        raise CheckpointError(f"it is damaged: an object at byte {m.position} is made with named arguments")
    arguments = m.pop()
    _call(m, m.pop(), arguments)


def _reduce(m: _Machine) -> None:
    arguments = m.pop()
    _call(m, m.pop(), arguments)


def _append(m: _Machine) -> None:
    item = m.pop()
    m.top(list).append(item)


def _stack_global(m: _Machine) -> None:
    name = m.pop()
    _global(m, m.pop(), name)


def _set_item(m: _Machine) -> None:
    value = m.pop()
    _set_items(m, [m.pop(), value])


# Protocols 2 to 5, as networks use them. Not here, and so refused: INST, OBJ, PERSID, the extension registry,
# out-of-band buffers, and the text forms of protocols 0 and 1.
OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    ord(code): operation
    for code, operation in {
        "\x80": lambda m: m.take(1),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME
        "(": lambda m: m.push(MARK),
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "J": lambda m: m.push(m.number("<i")),
        "K": lambda m: m.push(m.number("<B")),
        "M": lambda m: m.push(m.number("<H")),
        "\x8a": lambda m: m.push(_integer(m.take(m.number("<B")))),
        "\x8b": lambda m: m.push(_integer(m.take(m.number("<i")))),
        "G": lambda m: m.push(m.number(">d")),
        "T": lambda m: _legacy_string(m, m.number("<i")),
        "U": lambda m: _legacy_string(m, m.number("<B")),
        "B": lambda m: _bytes(m, m.number("<I")),
        "C": lambda m: _bytes(m, m.number("<B")),
        "\x8e": lambda m: _bytes(m, m.number("<Q")),
        "\x96": lambda m: _bytes(m, m.number("<Q")),  # a bytearray, for which bytes do
        "X": lambda m: _text(m, m.number("<I")),
        "\x8c": lambda m: _text(m, m.number("<B")),
        "\x8d": lambda m: _text(m, m.number("<Q")),
        "]": lambda m: m.push([]),
        "a": _append,
        "e": lambda m: _extend(m, m.pop_to_mark()),
        ")": lambda m: m.push(()),
        "t": lambda m: m.push(tuple(m.pop_to_mark())),
        "\x85": _tuple_of(1),
        "\x86": _tuple_of(2),
        "\x87": _tuple_of(3),
        "}": lambda m: m.push({}),
        "s": _set_item,
        "u": lambda m: _set_items(m, m.pop_to_mark()),
        "\x8f": lambda m: m.push(set()),
        "\x90": lambda m: _add_items(m, m.pop_to_mark()),
        "\x91": lambda m: m.push(frozenset(plain_key(item) for item in m.pop_to_mark())),
        "h": lambda m: _get(m, m.number("<B")),
        "j": lambda m: _get(m, m.number("<I")),
        "q": lambda m: _put(m, m.number("<B")),
        "r": lambda m: _put(m, m.number("<I")),
        "\x94": lambda m: _put(m, len(m.memo)),
        "c": lambda m: _global(m, m.line(), m.line()),
        "\x93": _stack_global,
        "R": _reduce,
        "b": _build,
        "\x81": lambda m: _new_object(m, keywords=False),
        "\x92": lambda m: _new_object(m, keywords=True),
        "Q": _persistent,
    }.items()
}
STOP = ord(".")


def _extend(m: _Machine, items: list) -> None:
    m.top(list).extend(items)


def read_pickle(
    data: memoryview,
    names: Mapping[str, Inert],
    limits: Limits,
    position: int = 0,
    persistent: Callable | None = None,
) -> tuple[object, int]:
    """Interpret one pickle.

    Args:
        data: the file, or part of it.
        names: "module.name" -> what it stands for; other names are refused.
        limits: of the file, shared between all its pickles.
        position: where in `data` the pickle begins.
        persistent: takes a persistent id (of torch's files: a storage's description), gives what it stands for.

    Returns:
        (the object, not yet `finished`; the position after the pickle).

    Raises:
        CheckpointError: whatever is wrong with it, as the end of a sentence that begins with the file's name.
    """
    m = _Machine(data, position, names, persistent, limits)
    end = len(data)
    while m.position < end:
        code = data[m.position]
        m.position += 1
        if code == STOP:
            return m.pop(), m.position
        operation = OPERATIONS.get(code)
        if operation is None:
            raise CheckpointError(
                f"it is damaged, or holds what no network needs: opcode {code:#04x} at byte {m.position - 1}"
            )
        limits.work()
        operation(m)
    raise CheckpointError("it is cut off: the data ends before the pickle does")


def finished(value, size: int | None = None):
    """The object as a tree of plain data: pending arrays in their final form; what is shared stays shared.

    Args:
        value: what `read_pickle` gave.
        size: bytes of the file, which bound those of all tensors; None does not.

    Raises:
        CheckpointError: it contains itself, is nested too deeply, or unfolds into far more than the file holds.
    """
    most = None if size is None else MAX_SHARING * size + 2**20
    # id -> (result, nodes and bytes of tensors when unfolded, the original, kept alive)
    done: dict[int, tuple[object, int, int, object]] = {}

    def visit(node, depth: int) -> tuple[object, int, int]:
        if isinstance(node, Pending):
            node = node.value
        if not isinstance(node, (dict, list, tuple, set, frozenset, Record)):
            return node, 1, getattr(node, "nbytes", 0)
        known = done.get(id(node))
        if known is not None:
            if known[1] == 0:
                raise CheckpointError("it contains itself")
            return known[:3]
        if depth > MAX_DEPTH:
            raise CheckpointError(f"it is nested more than {MAX_DEPTH} levels deep")
        done[id(node)] = (None, 0, 0, node)
        if isinstance(node, Record):
            inner, nodes, held = visit(node.state, depth + 1)
            result = Record(node.module, node.name, inner)
        elif isinstance(node, dict):
            result, nodes, held = {}, 1, 0
            for key, item in node.items():
                result[key], more, bytes_more = visit(item, depth + 1)
                nodes, held = nodes + more, held + bytes_more
        elif isinstance(node, (set, frozenset)):
            result, nodes, held = node, 1 + len(node), 0
        else:
            items = [visit(item, depth + 1) for item in node]
            result = type(node)(item[0] for item in items)
            nodes, held = 1 + sum(item[1] for item in items), sum(item[2] for item in items)
        if nodes > MAX_NODES or (most is not None and held > most):
            raise CheckpointError("it unfolds into far more than a network has")
        done[id(node)] = (result, nodes, held, node)
        return result, nodes, held

    return visit(value, 0)[0]
