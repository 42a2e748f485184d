"""Prototypes of classes: their arithmetic, their store, and the routes that train and use them."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from plait.server.api.app import create_app
from plait.server.api.classify.prototypes import (
    EPSILON,
    Prototypes,
    prototype_scores,
    train,
    transport_plan,
)
from plait.server.api.classify.store import PrototypeStore
from plait.server.errors import BadRequest, NotFound
from plait.server.settings import ApiSettings
from plait.server.telemetry.telemetry import Telemetry
from tests.fixtures.engine_pool import EnginePool, engine_pool
from tests.fixtures.running_server import QUIET
from tests.fixtures.stub_pool import StubModel, StubPool
from tests.fixtures.tiny_models import write_tiny_model

TEMPLATES = ["Text: {input}\nClass:", "{input} This is"]
EXAMPLES = {"a": ["one two", "two three"], "b": ["red blue", "blue green", "pink"]}
TRAIN: dict[str, Any] = {"name": "mine", "examples": EXAMPLES, "template": TEMPLATES}
WORDS = {"a": " number", "b": [" colour", " hue"]}
PATH = "/v1/classify/prototypes"
KEYS = ("sk-one", "sk-two")


def packed(*vectors: list[float]) -> list[bytes]:
    return [np.array(vector, "<f4").tobytes() for vector in vectors]


def random_plan(*shape: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    costs = np.random.default_rng(3).uniform(0, 2, shape)
    return costs, transport_plan(costs)


def test_a_plan_moves_all_of_both_sides() -> None:
    _, plan = random_plan(5, 4, 3, 6)
    assert plan.min() > 0
    np.testing.assert_allclose(plan.sum(axis=-1), 1 / 3, atol=1e-4)
    np.testing.assert_allclose(plan.sum(axis=-2), 1 / 6, atol=1e-12)


def test_a_plan_of_two_by_two_has_its_closed_form() -> None:
    """Its diagonal entries a satisfy a / (1/2 - a) = exp(-(c00 + c11 - c01 - c10) / 2 epsilon)."""
    costs, plan = random_plan(2, 2)
    odds = math.exp(-(costs[0, 0] + costs[1, 1] - costs[0, 1] - costs[1, 0]) / (2 * EPSILON))
    want = 0.5 * odds / (1 + odds)
    assert plan[0, 0] == pytest.approx(want, abs=1e-8)
    assert plan[1, 1] == pytest.approx(want, abs=1e-8)


def test_a_plan_is_optimal() -> None:
    """No other plan of these marginals has a lower cost plus EPSILON times negative entropy."""
    costs, plan = random_plan(3, 3)

    def objective(of: NDArray[np.float64]) -> float:
        return float((of * costs).sum() + EPSILON * (of * np.log(of)).sum())

    least = objective(plan)
    for i, j, k, m in ((0, 1, 0, 1), (0, 2, 1, 2), (1, 2, 0, 2), (1, 2, 0, 1)):
        moved = np.zeros((3, 3))
        moved[[i, j], [k, m]], moved[[i, j], [m, k]] = 1, -1
        for step in (1e-4, -1e-4):
            if (plan + step * moved).min() > 0:
                assert objective(plan + step * moved) > least


def test_prototypes_are_means_of_centred_unit_vectors() -> None:
    """By hand: the centre of four points on the axes is 0, and a class's mean points to it."""
    examples = {"x": [packed([2, 0]), packed([0, 2])], "y": [packed([-2, 0]), packed([0, -2])]}
    made = train("n", "m", ["{input}"], examples)
    half = math.sqrt(0.5)
    np.testing.assert_allclose(made.centres, [[0, 0]])
    np.testing.assert_allclose(made.means, [[[half, half]], [[-half, -half]]])
    assert (made.shots, made.num_examples) == (2, {"x": 2, "y": 2})
    (have,) = prototype_scores(made, [packed([3, 0])], "template")
    assert have == pytest.approx({"x": half, "y": -half})
    with_plan = prototype_scores(made, [packed([3, 0])], "transport")[0]
    assert with_plan == pytest.approx(have)  # one view and one prototype: there is one plan


def test_scores_depend_on_no_other_input() -> None:
    rng = np.random.default_rng(1)

    def views() -> list[bytes]:
        return packed(*rng.normal(size=(3, 8)).tolist())

    made = train("n", "m", ["a", "b", "c"], {"x": [views(), views()], "y": [views()]})
    inputs = [views() for _ in range(4)]
    for match in ("template", "transport"):
        together = prototype_scores(made, inputs, match)
        for i, own in enumerate(inputs):
            (alone,) = prototype_scores(made, [own], match)
            assert alone == pytest.approx(together[i], abs=1e-12)


def tiny_set(name: str, size: int = 2) -> Prototypes:
    vectors = packed([1.0] * size), packed([-1.0] * size)
    return train(name, "m", ["{input}"], {"x": [vectors[0]], "y": [vectors[1]]})


def test_a_store_is_bounded_and_forgets_what_was_used_least_recently() -> None:
    store = PrototypeStore(max_sets=2)
    store.put("k", tiny_set("a"))
    store.put("k", tiny_set("b"))
    store.use("k", "a", param="name")
    store.put("k", tiny_set("c"))
    assert [each.name for each in store.all("k")] == ["a", "c"]
    store.put("other", tiny_set("d"))
    assert [each.name for each in store.all("k")] == ["a", "c"]
    with pytest.raises(NotFound):
        store.use("k", "d", param="prototypes")


def test_a_store_is_bounded_in_bytes() -> None:
    store = PrototypeStore(max_bytes=2 * tiny_set("a", 100).num_bytes)
    for name in "abc":
        store.put("k", tiny_set(name, 100))
    assert [each.name for each in store.all("k")] == ["b", "c"]
    with pytest.raises(BadRequest) as caught:
        store.put("k", tiny_set("large", 1000))
    assert caught.value.param == "examples"
    assert [each.name for each in store.all("k")] == ["b", "c"]


def client_of(pool: Any, key: str | None = None, **settings: Any) -> httpx.AsyncClient:
    app = settings.pop("app", None) or create_app(ApiSettings(**settings), pool, Telemetry(QUIET))
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> EnginePool:
    return engine_pool(write_tiny_model(tmp_path_factory.mktemp("tiny")))


async def test_examples_are_of_their_own_class(pool: EnginePool) -> None:
    texts = [text for own in EXAMPLES.values() for text in own]
    async with client_of(pool) as client:
        made = (await client.post(PATH, json=TRAIN)).json()
        assert (made["examples"], made["templates"]) == ({"a": 2, "b": 3}, TEMPLATES)
        assert made["usage"]["prompt_tokens"] > 0
        for match in ("template", "transport"):
            body = {"input": texts, "prototypes": "mine", "match": match, "trace": True}
            have = (await client.post("/v1/classify", json=body)).json()["data"]
            assert [each["class"] for each in have] == ["a", "a", "b", "b", "b"]
            for each in have:
                assert each["prototypes"] == each["scores"]
                assert all(-1.001 < score < 1.001 for score in each["scores"].values())


async def scored(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    body = {"input": ["four five", "", "black"], **fields}
    have = await client.post("/v1/classify", json=body)
    assert have.status_code == 200, have.text
    data: list[dict[str, Any]] = have.json()["data"]
    return data


@pytest.mark.parametrize("beta", [None, 0, 0.25, 3])
async def test_the_score_is_the_prototypes_plus_beta_times_the_words(
    pool: EnginePool, beta: float | None
) -> None:
    given = {} if beta is None else {"beta": beta}
    weight = 0.5 if beta is None else beta  # two examples of the smaller class
    async with client_of(pool) as client:
        await client.post(PATH, json=TRAIN)
        words = await scored(client, classes=WORDS, template=TEMPLATES)
        alone = await scored(client, prototypes="mine")
        both = await scored(client, prototypes="mine", classes=WORDS, trace=True, **given)
    for name in WORDS:
        have = [each["scores"][name] for each in both]
        want = [
            one["scores"][name] + weight * other["scores"][name]
            for one, other in zip(alone, words, strict=True)
        ]
        assert have == pytest.approx(want, abs=1e-9)
        told = [fmean(t["scores"][name] for t in each["templates"]) for each in both]
        assert told == pytest.approx([each["scores"][name] for each in words], abs=1e-9)


async def test_a_key_has_its_own_prototypes() -> None:
    app = create_app(ApiSettings(api_keys=KEYS), StubPool(), Telemetry(QUIET))
    async with client_of(None, "sk-one", app=app) as one, client_of(None, "sk-two", app=app) as two:
        assert (await one.post(PATH, json=TRAIN)).status_code == 200
        assert [each["name"] for each in (await one.get(PATH)).json()["data"]] == ["mine"]
        assert (await one.get(f"{PATH}/mine")).json()["examples"] == {"a": 2, "b": 3}
        assert (await two.get(PATH)).json()["data"] == []
        use = {"input": "x", "prototypes": "mine"}
        have = await two.post("/v1/classify", json=use)
        assert (have.status_code, have.json()["error"]["param"]) == (404, "prototypes")
        assert (await two.delete(f"{PATH}/mine")).status_code == 404
        assert (await one.post("/v1/classify", json=use)).status_code == 200
        have = await one.delete(f"{PATH}/mine")
        assert (have.status_code, have.json()["deleted"]) == (200, True)
        assert (await one.post("/v1/classify", json=use)).status_code == 404


BAD_USE = [
    ({"template": "{input}:"}, "template"),
    ({"prototypes": None}, "template"),
    ({"prototypes": "no such"}, "prototypes"),
    ({"classes": {"a": " a", "c": " c"}}, "classes"),
    ({"classes": {"a": " a", "b": " "}}, "classes.b"),
    ({"beta": 1}, "beta"),
    ({"calibrate": True}, "calibrate"),
    ({"combine": "max"}, "combine"),
    ({"beta": -1, "classes": WORDS}, "beta"),
    ({"match": "nearest"}, "match"),
    ({"prototypes": None, "template": "{input}:", "match": "transport"}, "match"),
    ({"prototypes": None, "template": "{input}:"}, "classes"),
    ({"model": "second"}, "prototypes"),
]


@pytest.mark.parametrize(("change", "param"), BAD_USE)
async def test_a_use_that_contradicts_itself_is_named(change: dict[str, Any], param: str) -> None:
    served = StubPool(served=[StubModel(), StubModel("second")])
    async with client_of(served) as client:
        assert (await client.post(PATH, json=TRAIN | {"model": "stub"})).status_code == 200
        body = {"input": "x", "prototypes": "mine", "model": "stub"}
        have = await client.post("/v1/classify", json=body | change)
    assert have.status_code == 400, have.text
    assert have.json()["error"]["param"] == param


BAD_TRAINING = [
    ({"name": ""}, "name"),
    ({"name": "a/b"}, "name"),
    ({"examples": {"a": ["x"]}}, "examples"),
    ({"examples": {"a": ["x"], "b": []}}, "examples.b"),
    ({"examples": {"a": ["x"], "b": ["x", ""]}}, "examples.b[1]"),
    ({"examples": {"a": ["x"] * 200, "b": ["x"]}}, "examples"),
    ({"examples": {"a": ["x"], "b": ["x", "y" * 2040]}}, "examples.b[1]"),
    ({"template": "no place"}, "template"),
    ({"classes": WORDS}, "classes"),
]


@pytest.mark.parametrize(("change", "param"), BAD_TRAINING)
async def test_what_can_not_be_trained_is_named(change: dict[str, Any], param: str) -> None:
    async with client_of(StubPool()) as client:
        have = await client.post(PATH, json=TRAIN | change)
        assert (have.status_code, have.json()["error"]["param"]) == (400, param)
        assert (await client.get(PATH)).json()["data"] == []
