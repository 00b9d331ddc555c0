"""JSON that anybody may have written."""

from __future__ import annotations

import pytest

from dithead.jsontext import parse_json


@pytest.mark.parametrize(
    "text", ["1", "null", '"["', "[]", '{"a": [1, {"b": []}]}', "[" * 64 + "]" * 64]
)
def test_what_is_nested_a_little_is_read(text: str) -> None:
    parse_json(text)


@pytest.mark.parametrize("depth", [65, 900, 1000, 100_000])
def test_what_is_nested_more_is_no_json_of_ours(depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}"), ('[{"a": 1, "b":', "}]")):
        with pytest.raises(ValueError, match="nested more than 64 deep"):
            parse_json(opening * depth + "0" + closing * depth)
    with pytest.raises(ValueError):
        parse_json("[" * depth)
