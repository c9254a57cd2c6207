"""What is printed or encoded reads back the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.prop.trees import LAYOUTS, NODES
from vswitchd.errors import VsError
from vswitchd.model.codec import decode_node, encode_node
from vswitchd.model.layout import Layout, format_size, parse_layout, parse_size, print_layout
from vswitchd.model.objects import Node
from vswitchd.restructure.codec import decode_plan


@given(LAYOUTS)
def test_layouts_read_back(layout: Layout) -> None:
    assert parse_layout(print_layout(layout)) == layout


@given(st.integers(0, (1 << 63) - 1))
def test_sizes_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(NODES)
def test_nodes_read_back(node: Node) -> None:
    assert decode_node(encode_node(node)) == node


@given(st.text(alphabet="mirostpecna()2,:/=#K. \n", max_size=40))
def test_any_text_is_a_layout_or_a_clear_error(text: str) -> None:
    try:
        parse_layout(text)
    except VsError as error:
        assert error.code == "VS1013"
        assert "^\nexpected " in error.message


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "t1", "size", "legs", "steps", "base", "no_return", "parts"]),
            inner | st.sampled_from(["leaf", "mirror", "concat"]),
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(_JSON)
def test_any_json_is_refused_by_name(value: object) -> None:
    for decode in (decode_node, decode_plan):
        try:
            decode(json.dumps(value))
        except VsError as error:
            assert error.code == "VS1020"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"kind": NaN', "\ud800"])
def test_text_that_is_not_json(text: str) -> None:
    with pytest.raises(VsError, match="VS1020"):
        decode_node(text)
