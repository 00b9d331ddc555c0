"""Reads JSON from untrusted sources."""

from __future__ import annotations

import json
from typing import Any

_DEEPEST = 64
"""Nesting depth far above anything of ours, and still safe for recursion through the values."""


def parse_json(text: str) -> Any:
    """The values of a JSON text.

    Raises:
        ValueError: it is not JSON, or is nested more deeply than anything that DiT-Head writes.
    """
    too_deep = f"nested more than {_DEEPEST} deep"
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    layer, depth = [values] if isinstance(values, dict | list) else [], 0
    while layer:
        if depth == _DEEPEST:
            raise ValueError(too_deep)
        inner = (v.values() if isinstance(v, dict) else v for v in layer)
        layer = [v for held in inner for v in held if isinstance(v, dict | list)]
        depth += 1
    return values
