"""Power transform of the two sizes, and its file (design 4.1)."""

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.preprocessing import PowerTransformer

from calmlflow.errors import InputError
from calmlflow.hst.scaling import Scaling, yeo_johnson

IDENTITY = {"lambdas": (1.0, 1.0), "mu": (0.0, 0.0), "sigma": (1.0, 1.0)}
FITTED = PowerTransformer(method="yeo-johnson", standardize=False).fit(np.random.default_rng(0).random((8, 2)))


def transformer(lambdas: list[float]) -> PowerTransformer:
    """scikit-learn's transformer with lambdas of our choice."""
    chosen = copy.copy(FITTED)
    chosen.lambdas_ = np.array(lambdas)
    return chosen


VALUES = hnp.arrays(float, st.tuples(st.integers(1, 10), st.just(2)), elements=st.floats(-1e4, 1e4))
LAMBDAS = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, -1.0]), st.floats(0.01, 1.99), st.floats(-3, -0.01), st.floats(2.01, 5)
)


@given(VALUES, LAMBDAS, LAMBDAS)
def test_yeo_johnson_equals_scikit_learn(values, lam_one, lam_other):
    expected = transformer([lam_one, lam_other]).transform(values)
    np.testing.assert_allclose(yeo_johnson(values[:, 0], lam_one), expected[:, 0], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(yeo_johnson(values[:, 1], lam_other), expected[:, 1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("special", [0.0, 2.0])
def test_yeo_johnson_is_continuous_where_it_turns_into_a_logarithm(special):
    values = np.array([-1000.0, -1.0, 0.0, 1e-3, 1.0, 1000.0])
    for step in (-1e-12, 1e-12):
        np.testing.assert_allclose(yeo_johnson(values, special + step), yeo_johnson(values, special), rtol=1e-6)


def test_apply_by_hand():
    # lambda 1 leaves a value as it is; lambda 0 is log(1 + x).
    features = np.array([[10, math.e - 1, 1, 0, 2, 1, 0, 1, 3]])
    scaled = Scaling((1.0, 0.0), (2.0, 1.0), (4.0, 0.5)).apply(features)
    np.testing.assert_allclose(scaled, [[2, 0, 1, 0, 2, 1, 0, 1, 3]], atol=1e-6)
    assert (scaled.dtype, features[0, 0]) == (np.float32, 10)
    assert Scaling(**IDENTITY).apply(features[:0]).shape == (0, 9)


@pytest.mark.parametrize("shape", [(9,), (2, 8), (1, 10), (1, 1, 9)])
def test_apply_refuses_other_shapes(shape):
    with pytest.raises(InputError, match=r"expected \(n, 9\)"):
        Scaling(**IDENTITY).apply(np.zeros(shape))


PAIRS = st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2)
SIGMAS = st.tuples(*[st.floats(min_value=0, exclude_min=True, allow_infinity=False)] * 2)


@given(PAIRS, PAIRS, SIGMAS)
def test_json_round_trip_is_exact_and_its_keys_are_those_of_the_earlier_library(lambdas, mu, sigma):
    scaling = Scaling(lambdas, mu, sigma)
    assert Scaling.from_json(scaling.to_json()) == Scaling.from_json(scaling.to_json().encode()) == scaling
    assert json.loads(scaling.to_json()) == {"lambdas": list(lambdas), "mu": list(mu), "sigma": list(sigma)}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *(("lambdas", values) for values in ((1.0,), (1.0, 1.0, 1.0), (1.0, math.nan), (math.inf, 1.0))),
        *(("mu", ()), ("sigma", ()), ("sigma", (0.0, 1.0)), ("sigma", (1.0, -1.0))),
    ],
)
def test_numbers_that_cannot_be_are_named(name, values):
    with pytest.raises(InputError, match=rf"{name} .*(; expected two finite numbers| above 0)"):
        Scaling(**IDENTITY | {name: values})


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", b"\xff", "[" * 100_000, '{"lambdas": [1, 1], "mu": [0, 0]}'),
        *(
            f'{{"lambdas": [1, 1], "mu": [0, 0], "sigma": {sigma}}}'
            for sigma in ("1", '["a", "b"]', "[1, null]", "[1, 1" + "0" * 400 + "]")
        ),
    ],
    ids=lambda text: repr(text[:50]),
)
def test_what_is_no_scaling_file(text):
    with pytest.raises(InputError, match=r"tx_data\.json does not parse; expected"):
        Scaling.from_json(text)


@given(
    st.one_of(
        st.binary(), st.text(), st.dictionaries(st.sampled_from([*IDENTITY]), st.lists(st.floats())).map(json.dumps)
    )
)
def test_any_text_parses_or_is_an_input_error(text):
    try:
        scaling = Scaling.from_json(text)
    except InputError:
        return
    assert min(scaling.sigma) > 0
