"""Changes of an input that get past its outermost layer: checksums, lengths and directories fit."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, cast

import onnx

_NUMBERS = (0, -1, 1, 2, 255, 256, 65536, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64, 10**12)
_ODD: tuple[Any, ...] = (
    None, True, "", "x", "../x", "/etc/passwd", "\0", [], {}, [[]], 1e308, 0.5, -0.0, "NaN", "é\n",
    float("nan"), float("inf"), 10**30, "9" * 30, "s0", "9**9**9", "*a", [1] * 50, {"a": {"b": []}},
)  # fmt: skip
_WORDS = (
    b"../", b"\0", b"\xff\xfe",
    b"&a ", b"*a", b"!!", b"[" * 40, b"{" * 40, b",", b"\n", b"=", b": ",
    b"W4A8", b"None", b"nan", b"-1", b"1e999", b"0x", b'"', b"\xef\xbb\xbf", b"?", b"[a-", b"*",
)  # fmt: skip


def mutate(content: bytes, kind: str, chance: random.Random) -> bytes:
    """`content` changed in one to four places, by what is known of its `kind`."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        change = _KINDS.get(kind, _bytes)
        try:
            content = change(content, chance) if chance.random() < 0.85 else _bytes(content, chance)
        except Exception:  # noqa: BLE001 - by now it is no file of its kind
            content = _bytes(content, chance)
    return content[: 2**18]


def _bytes(content: bytes, chance: random.Random) -> bytes:
    """Bits, bytes, words, parts: flipped, put in, taken out, doubled."""
    data = bytearray(content or b"\0")
    at, length = chance.randrange(len(data)), chance.choice((1, 2, 4, 8, 16, 64))
    what = chance.randrange(7)
    if what == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif what == 1:
        data[at] = chance.randrange(256)
    elif what == 2:
        number = chance.choice(_NUMBERS) % 2**64
        order = chance.choice(("little", "big"))
        wide = number.to_bytes(8, cast("Any", order))
        data[at : at + 4] = wide[:4] if order == "little" else wide[4:]
    elif what == 3:
        del data[at : at + length]
    elif what == 4:
        data[at:at] = data[max(0, at - length) : at]
    elif what == 5:
        data[at:at] = chance.choice(_WORDS)
    else:
        other = chance.randrange(len(data))
        data[at : at + length] = data[other : other + length]
    return bytes(data)


def _json(content: bytes, chance: random.Random) -> bytes:
    """A value of a JSON text replaced, taken out or doubled."""
    return json.dumps(_value(json.loads(content), chance)).encode()


def _value(value: Any, chance: random.Random) -> Any:
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        items = one.items() if isinstance(one, dict) else enumerate(one)
        for key, inner in items:
            places.append((one, key))
            if isinstance(inner, dict | list):
                waiting.append(inner)
    if not places:
        return chance.choice(_ODD)
    inside, key = chance.choice(places)
    what = chance.randrange(5)
    if what == 0:
        del inside[key]
    elif what == 1:
        inside[key] = chance.choice(_NUMBERS)
    elif what == 2:
        other, where = chance.choice(places)
        if where in (other if isinstance(other, dict) else range(len(other))):
            inside[key] = json.loads(json.dumps(other[where]))
    elif what == 3 and isinstance(inside[key], str) and inside[key]:
        text = inside[key].encode()
        inside[key] = _bytes(text, chance).decode("utf-8", "replace")
    else:
        inside[key] = chance.choice(_ODD)
    return value


def _zip(content: bytes, chance: random.Random) -> bytes:
    """A member changed, taken out, renamed or added; directory and checksums fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = [(name, file.read(name)) for name in file.namelist()]
    at = chance.randrange(len(members))
    name, inner = members[at]
    what = chance.randrange(8)
    if what == 0:
        del members[at]
    elif what == 1:
        members[at] = (_bytes(name.encode(), chance).decode("utf-8", "replace"), inner)
    elif what == 2:
        members.append((name.rpartition("/")[0] + "/" + chance.choice(("x", "version")), inner))
    elif inner[:1] in (b"{", b"["):
        members[at] = (name, _json(inner, chance))
    else:
        members[at] = (name, _bytes(inner, chance))
    made = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if chance.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", how) as file:
        for name, inner in members:
            file.writestr(name, inner)
    return made.getvalue()


def _safetensors(content: bytes, chance: random.Random) -> bytes:
    """The header changed, and the descriptions in it, which are JSON within JSON; lengths fit."""
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    texts = list(header.get("__metadata__", {}))
    if texts and chance.random() < 0.6:
        key = chance.choice(texts)
        inner = _json(header["__metadata__"][key].encode(), chance)
        header["__metadata__"][key] = inner.decode()
    elif chance.random() < 0.7:
        header = _value(header, chance)
    else:
        rest = _bytes(rest, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def _picture(content: bytes, chance: random.Random) -> bytes:
    """A chunk of a PNG changed, and its checksum with it; bytes of any other picture."""
    if not content.startswith(b"\x89PNG"):
        return _bytes(content, chance)
    chunks, at = list[tuple[bytes, bytes]](), 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    place = chance.randrange(len(chunks))
    kind, data = chunks[place]
    what = chance.randrange(6)
    if what == 0:
        del chunks[place]
    elif what == 1:
        chunks.insert(chance.randrange(len(chunks)), chunks[place])
    elif what == 2:
        chunks[place] = (chance.choice((b"tRNS", b"acTL", b"iCCP", b"zTXt", b"PLTE")), data)
    else:
        chunks[place] = (kind, _bytes(data, chance))
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        made += struct.pack(">I", len(data)) + kind + data
        made += struct.pack(">I", zlib.crc32(kind + data))
    return made


def _onnx(content: bytes, chance: random.Random) -> bytes:  # noqa: C901 - nine small changes
    """A node, attribute, weight or shape of an ONNX file changed; it is still a file of ONNX."""
    made = onnx.ModelProto.FromString(content)
    graph, what = made.graph, chance.randrange(9)
    node = chance.choice(graph.node)
    tensor = chance.choice(graph.initializer)
    if what == 0:
        node.op_type = chance.choice(onnx.defs.get_all_schemas()).name
    elif what == 1 and node.input:
        names = [name for one in graph.node for name in (*one.input, *one.output)]
        node.input[chance.randrange(len(node.input))] = chance.choice(names)
    elif what == 2 and node.attribute:
        attribute = chance.choice(node.attribute)
        attribute.i = chance.choice(_NUMBERS[:11])
        if attribute.ints:
            attribute.ints[chance.randrange(len(attribute.ints))] = attribute.i
    elif what == 3:
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(_NUMBERS[:11])
    elif what == 4:
        tensor.raw_data = _bytes(tensor.raw_data, chance)
    elif what == 5:
        tensor.data_type = chance.randrange(24)
    elif what == 6:
        value = chance.choice((*graph.input, *graph.output)).type.tensor_type
        if value.shape.dim:
            chance.choice(value.shape.dim).dim_value = chance.choice(_NUMBERS[:11])
    elif what == 7:
        graph.node.remove(node)
    else:
        added = graph.node.add()
        added.CopyFrom(node)
        added.output[0] = node.input[0] + "_" if node.input else "z"
    return made.SerializeToString()


_KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": _json, "zip": _zip, "safetensors": _safetensors, "picture": _picture, "onnx": _onnx,
}  # fmt: skip
