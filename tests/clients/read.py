"""Reads request bodies as Python's json does: base64 lines in, one view of each out (see moat_tests::corpus)."""

import base64
import json
import struct
import sys

sys.setrecursionlimit(100_000)


def units(text):
    return '"' + text.encode("utf-16-be", "surrogatepass").hex() + '"'


def view(value):
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return units(value)
    if isinstance(value, float):
        if value.is_integer():
            return f"i{int(value)}"
        return "f" + struct.pack(">d", value).hex()
    if isinstance(value, int):
        return f"i{value}"
    if isinstance(value, list):
        return "[" + ",".join(map(view, value)) + "]"
    return "{" + ",".join(sorted(f"{units(key)}:{view(member)}" for key, member in value.items())) + "}"


def read(body):
    try:
        sys.setrecursionlimit(1000)
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "unreadable"
    finally:
        sys.setrecursionlimit(100_000)
    return view(value)


for line in sys.stdin:
    print(read(base64.b64decode(line)))
