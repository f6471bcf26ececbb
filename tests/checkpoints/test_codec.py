import json
import math
import random
from collections import OrderedDict
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_forcing.checkpoints.codec import decode, encode

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.just("$")
    | st.sampled_from([torch.float16, torch.device("cpu"), torch.Size([2, 3]), timedelta(days=1, microseconds=3)])
)
keys = (
    st.text(max_size=3) | st.integers() | st.booleans() | st.tuples(st.integers(), st.text(max_size=2)) | st.just("$")
)
arrays = st.sampled_from(
    [
        torch.arange(6).reshape(2, 3),
        torch.randn(2, dtype=torch.float64),
        torch.tensor(3.0),
        torch.zeros(0, 2),
        torch.tensor([True]),
    ]
)
values = st.recursive(
    scalars | arrays,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=12,
)


def through_json(value: Any) -> Any:
    tree, tensors = encode(value)
    return decode(json.loads(json.dumps(tree)), tensors)


def same(a: Any, b: Any) -> bool:
    """Equal in type and value, all the way down; nan equals nan and -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict):
        return [type(k) for k in a] == [type(k) for k in b] and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@given(values)
@settings(max_examples=200, deadline=None)
def test_any_nested_value_comes_back_equal_in_type_and_value(value: Any) -> None:
    assert same(through_json(value), value)


def test_plain_values_stay_plain_json() -> None:
    value = {"step": 3, "facts": ["a", None, 1.5, True]}
    assert encode(value) == (value, {})


def test_random_states_of_python_numpy_and_torch_come_back() -> None:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
    found = through_json(state)
    assert found["python"] == state["python"]
    assert found["numpy"][0] == "MT19937"
    assert (found["numpy"][1] == state["numpy"][1]).all()
    assert found["numpy"][1].dtype == np.uint32
    assert found["numpy"][2:] == state["numpy"][2:]
    assert torch.equal(found["torch"], state["torch"])
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])  # noqa: NPY002


def test_optimizer_state_with_integer_keys_comes_back() -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), betas=(0.9, 0.99))
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = through_json(optimizer.state_dict())
    assert list(found["state"]) == [0, 1]
    assert found["param_groups"][0]["betas"] == (0.9, 0.99)
    torch.optim.AdamW(layer.parameters()).load_state_dict(found)


def test_a_tensor_met_twice_is_stored_once_and_views_are_stored_without_what_they_view() -> None:
    base = torch.arange(1000.0)
    tree, tensors = encode({"a": base[:2], "b": base[:2], "c": base[1:3], "d": base[::500]})
    assert len(tensors) == 3
    assert sum(t.untyped_storage().nbytes() for t in tensors.values()) == 6 * 4
    assert decode(tree, tensors)["c"].tolist() == [1.0, 2.0]


def test_ordered_dicts_and_numpy_numbers_and_paths_and_text_enums_become_plain() -> None:
    class Mode(str, Enum):
        MIN = "min"

    value = {"o": OrderedDict(a=1), "n": np.float32(0.5), "p": Path("a/b"), "e": Mode.MIN, "s": {1, 2}}
    found = through_json(value)
    assert found["o"] == {"a": 1}
    assert found["n"] == np.float32(0.5)
    assert found["n"].dtype == np.float32
    assert (found["p"], found["e"], found["s"]) == ("a/b", "min", {1, 2})


def test_a_value_that_cannot_be_kept_is_named_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"cannot keep callbacks/0/hook .* it is a builtin_function_or_method"):
        encode({"callbacks": [{"hook": len}]})


@pytest.mark.parametrize("tree", [{"$": "module", "v": "os"}, {"$": ["x"], "v": 1}, {"$": "dtype", "v": "load"}])
def test_a_foreign_kind_of_value_is_refused(tree: Any) -> None:
    with pytest.raises(ValueError):
        decode(tree, {})
