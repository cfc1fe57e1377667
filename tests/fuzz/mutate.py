"""Damage: seeded changes of any bytes, and of the header of a safetensors file."""

from __future__ import annotations

import json

#: Bytes that parsers often handle badly.
_TOKENS = (
    *(number.to_bytes(size, "little") for number in (0, 1, 127, 128, 255) for size in (1, 2, 4, 8)),
    *(number.to_bytes(size, "big") for number in (1, 127, 128, 255) for size in (2, 4, 8)),
    *(b"\xff" * size for size in (2, 4, 8)),
    b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 64,
    b"nan", b"-1e999", b"9" * 400, b"[" * 2000, b'{"a":' * 2000, b'"', b"\xef\xbb\xbf", b"\n",
)  # fmt: skip

_WORDS = (
    "", "-1", "0", "1", "7", "256", "64", "1e9", "9" * 5000, "1_0", "\x1b[2J", "a\nb", "\udcff",
    "[" * 100_000, '{"a":' * 100_000, "null", "NaN", "{}", "instance", "batch", "none",
)  # fmt: skip

_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "U8", "BOOL", "C64")

#: Dtypes of equal size.
_LIKE = (("F64", "I64", "C64"), ("F32", "I32"), ("F16", "BF16", "I16"))


def damaged(content, random, others):
    """Content with one to four changes.

    Args:
        content: bytes of a file.
        random: generator of the choices.
        others: contents of files from which pieces are taken.
    """
    for _ in range(random.choice((1, 1, 2, 4))):
        content = random.choice(_WAYS)(content, random, others)
    return content


def damaged_header(content, random, others):
    """Safetensors file with one change in its header. Sizes and offsets may no longer fit."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    tensors = [name for name in header if name != "__metadata__"]
    entry = header[random.choice(tensors)]
    way = random.randrange(7)
    if way == 0:
        metadata[random.choice(list(metadata))] = random.choice(_WORDS)
    elif way == 1:
        del metadata[random.choice(list(metadata))]
    elif way == 2:
        entry["dtype"] = random.choice(_DTYPES)
    elif way == 3:
        sizes = (0, 1, 2, 3, 2**32, 2**63)
        entry["shape"] = [random.choice(sizes) for _ in range(random.randrange(5))]
    elif way == 4:
        entry["data_offsets"] = [random.choice((0, 4, 2**40)), random.choice((0, 8, 2**40))]
    elif way == 5:
        header[random.choice(_WORDS)[:50]] = header.pop(random.choice(tensors))
    else:
        # Another dtype of equal size keeps the file consistent.
        entry["dtype"] = random.choice(next(like for like in _LIKE if entry["dtype"] in like))
    text = json.dumps(header).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _place(content, random):
    # Half of the places are in the first 64 bytes, where most formats have their header.
    end = len(content) if random.random() < 0.5 else min(len(content), 64)
    return random.randrange(end + 1)


def _flip(content, random, others):
    at = _place(content, random)
    changed = bytearray(content)
    for index in range(at, min(at + random.choice((1, 1, 1, 8)), len(changed))):
        changed[index] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwrite(content, random, others):
    at, token = _place(content, random), random.choice(_TOKENS)
    return content[:at] + token + content[at + len(token) :]


def _insert(content, random, others):
    at = _place(content, random)
    return content[:at] + random.choice(_TOKENS) + content[at:]


def _cut_off(content, random, others):
    return content[: _place(content, random)]


def _cut_out(content, random, others):
    at = _place(content, random)
    return content[:at] + content[at + random.choice((1, 4, 16, 256)) :]


def _splice(content, random, others):
    other = random.choice(others)
    return content[: _place(content, random)] + other[_place(other, random) :]


_WAYS = (_flip, _flip, _overwrite, _overwrite, _insert, _cut_off, _cut_out, _splice)
