"""Models of one's own (mlflow.pyfunc.PythonModel): params, type hints, outputs of every kind, tensors, streams."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pydantic
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc import PythonModel
from mlflow.types import Schema, TensorSpec
from mlflow.types.type_hints import TypeFromExample

from tests.flavours.conftest import LogModel, Trial, assert_same, quiet, split

FRAME = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "name": list("abcdef")})


def log_python(log: LogModel, name: str, model: PythonModel, **how: Any) -> str:
    return log(name, mlflow.pyfunc.log_model, python_model=model, **how)


# Params.


class Weighed(PythonModel):
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        x = model_input["x"] * params["factor"] + sum(params["weights"])
        return [f"{params['prefix']}{v:g} {params['since']:%Y}" for v in x]


@pytest.fixture(scope="session")
def weighed(log: LogModel) -> str:
    params = {"factor": 2.0, "weights": [1.0, 2.0], "prefix": "", "since": np.datetime64("2020-01-01")}
    signature = infer_signature(FRAME[["x"]], ["a"], params=params)
    return log_python(log, "python_params", Weighed(), signature=signature)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (None, ["5 2020", "7 2020"]),
        ({}, ["5 2020", "7 2020"]),
        ({"factor": 10}, ["13 2020", "23 2020"]),
        ({"factor": 10.5, "weights": [1]}, ["11.5 2020", "22 2020"]),
        ({"weights": [0.5, 0.25], "prefix": "~"}, ["~2.75 2020", "~4.75 2020"]),
        ({"since": "2024-05-06T07:08:09"}, ["5 2024", "7 2024"]),
    ],
)
async def test_params_and_their_defaults(trial: Trial, weighed: str, params: Any, expected: list[str]) -> None:
    assert await trial.rows(weighed, FRAME[["x"]].iloc[:2], params) == expected


async def test_jobs_of_different_params_are_predicted_apart(trial: Trial, weighed: str) -> None:
    asked = [None, {"factor": 1.0}, {"factor": 3.0}, None]
    jobs = [await trial.client.submit(weighed, split(FRAME[["x"]].iloc[[0]]), params=params) for params in asked]
    await trial.work.all()
    answers = [await trial.client.result(job) for job in jobs]
    assert answers == [["5 2020"], ["4 2020"], ["6 2020"], ["5 2020"]]


@pytest.mark.parametrize(
    ("params", "name"),
    [({"factor": "secret"}, "factor"), ({"weights": 987.25}, "weights"), ({"weights": ["secret"]}, "weights")],
)
async def test_a_param_of_the_wrong_type_is_named(trial: Trial, weighed: str, params: Any, name: str) -> None:
    said = await trial.refusal(weighed, split(FRAME[["x"]].iloc[[0]]), params)
    assert said.startswith("invalid_input")
    assert name in said
    assert "secret" not in said
    assert "987.25" not in said


async def test_a_param_that_the_model_does_not_know_is_named(trial: Trial, weighed: str) -> None:
    said = await trial.refusal(weighed, split(FRAME[["x"]].iloc[[0]]), {"factr": 1.0})
    assert said.startswith("invalid_input")
    assert "factr" in said


class Told(PythonModel):
    """Its params are an object."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return [params["who"]["name"]] * len(model_input)


async def test_params_may_be_objects(log: LogModel, trial: Trial) -> None:
    signature = infer_signature(FRAME[["x"]], ["a"], params={"who": {"name": "nobody"}})
    uri = log_python(log, "python_object_params", Told(), signature=signature)
    assert await trial.rows(uri, FRAME[["x"]].iloc[:2]) == ["nobody"] * 2
    assert await trial.rows(uri, FRAME[["x"]].iloc[:2], {"who": {"name": "Ann"}}) == ["Ann"] * 2
    assert "who" in await trial.refusal(uri, split(FRAME[["x"]].iloc[[0]]), {"who": {"surname": "Ann"}})


# Type hints.


class Shout(PythonModel):
    def predict(self, model_input: list[str], params: Any = None) -> list[str]:
        return [text.upper() for text in model_input]


async def test_a_list_of_texts(log: LogModel, trial: Trial) -> None:
    uri = log_python(log, "python_texts", Shout())
    for form in ("inputs", "instances"):
        assert await trial.together(uri, [{form: [t]} for t in "abc"]) == [["A"], ["B"], ["C"]]
    assert await trial.one(uri, {"inputs": ["a", "b"]}) == ["A", "B"]
    assert await trial.rows(uri, FRAME[["name"]]) == list("ABCDEF")
    assert (await trial.batch(uri, FRAME[["name"]]))["prediction"].tolist() == list("ABCDEF")
    said = await trial.refusal(uri, {"inputs": [7]})
    assert said.startswith("invalid_input") or "string" in said


class Address(pydantic.BaseModel):
    town: str
    number: int | None = None


class Person(pydantic.BaseModel):
    name: str
    height: float
    nicknames: list[str] = []
    address: Address | None = None


class Greet(PythonModel):
    def predict(self, model_input: list[Person], params: Any = None) -> list[str]:
        said = []
        for person in model_input:
            assert isinstance(person, Person)
            town = person.address.town if person.address else "?"
            said.append(f"{person.name} {person.height:g} {','.join(person.nicknames)} {town}")
        return said


PEOPLE = [
    {"name": "Ann", "height": 1.5, "nicknames": ["A"], "address": {"town": "Ulm", "number": 3}},
    {"name": "Bob", "height": 2, "nicknames": [], "address": {"town": "Bonn"}},
    {"name": "Cid", "height": 1.75, "nicknames": ["C", "D"]},
]
GREETED = ["Ann 1.5 A Ulm", "Bob 2  Bonn", "Cid 1.75 C,D ?"]


@pytest.fixture(scope="session")
def greet(log: LogModel) -> str:
    with quiet():
        return log_python(log, "python_pydantic", Greet())


@pytest.mark.parametrize("form", ["inputs", "instances", "dataframe_records"])
async def test_a_list_of_pydantic_objects(trial: Trial, greet: str, form: str) -> None:
    assert await trial.together(greet, [{form: [person]} for person in PEOPLE]) == [[text] for text in GREETED]
    assert await trial.one(greet, {form: PEOPLE[:1] * 2}) == GREETED[:1] * 2
    if form != "dataframe_records":
        assert await trial.one(greet, {form: PEOPLE}) == GREETED


async def test_pydantic_objects_from_a_frame_of_their_fields(trial: Trial, greet: str) -> None:
    frame = pd.DataFrame(
        [{"name": n, "height": h, "nicknames": [n[0]]} for n, h in [("Ann", 1.5), ("Bob", 2.0), ("Cid", 3.0)]]
    )
    found = (await trial.batch(greet, frame))["prediction"].tolist()
    assert found == ["Ann 1.5 A ?", "Bob 2 B ?", "Cid 3 C ?"]


@pytest.mark.parametrize(
    ("person", "name"),
    [
        ({"name": "secret"}, "height"),
        ({"name": "secret", "height": "987.25"}, "height"),
        ({"name": "secret", "height": 987.25, "address": {"town": 5}}, "town"),
        ({"name": "secret", "height": 987.25, "nicknames": "secret"}, "nicknames"),
    ],
)
async def test_a_field_of_the_wrong_type_is_named(trial: Trial, greet: str, person: Any, name: str) -> None:
    said = await trial.refusal(greet, {"inputs": [person]})
    assert said.startswith("invalid_input")
    assert name in said
    assert "secret" not in said
    assert "987.25" not in said


class Keys(PythonModel):
    def predict(self, model_input: list[dict[str, float]], params: Any = None) -> list[str]:
        return [",".join(f"{k}={v:g}" for k, v in sorted(row.items())) for row in model_input]


class Sums(PythonModel):
    def predict(self, model_input: list[list[float]], params: Any = None) -> list[float]:
        return [sum(row) for row in model_input]


class Years(PythonModel):
    def predict(self, model_input: list[dt.datetime], params: Any = None) -> list[int]:
        return [moment.year for moment in model_input]


async def test_lists_of_objects_lists_and_times(log: LogModel, trial: Trial) -> None:
    with quiet():
        keys, sums = log_python(log, "python_keys", Keys()), log_python(log, "python_sums", Sums())
        years = log_python(log, "python_years", Years())
    rows: list[dict[str, float]] = [{"a": 1, "b": 2.5}, {"b": 1.0}, {"c": 3.0, "a": 1.5}]
    assert await trial.together(keys, [{"inputs": [row]} for row in rows]) == [["a=1,b=2.5"], ["b=1"], ["a=1.5,c=3"]]
    assert await trial.one(keys, {"inputs": rows}) == ["a=1,b=2.5", "b=1", "a=1.5,c=3"]
    assert await trial.together(sums, [{"inputs": [row]} for row in ([1, 2], [3.5], [1, 2, 3])]) == [
        [3.0],
        [3.5],
        [6.0],
    ]
    assert await trial.one(years, {"inputs": ["2024-05-06T07:08:09", "2025-01-01"]}) == [2024, 2025]
    assert "invalid_input" in await trial.refusal(sums, {"inputs": [["a"]]})
    assert "invalid_input" in await trial.refusal(keys, {"inputs": [{"a": "b"}]})


class Hinted(PythonModel):
    def predict(self, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        assert isinstance(model_input, pd.DataFrame)
        return model_input[["x"]] * 2


class ByExample(PythonModel):
    def predict(self, model_input: TypeFromExample, params: Any = None) -> Any:
        return [f"{item} in a {type(model_input).__name__}" for item in model_input]


async def test_hints_of_frames_and_by_example(log: LogModel, trial: Trial) -> None:
    with quiet():
        hinted = log_python(log, "python_frame_hint", Hinted(), signature=infer_signature(FRAME, FRAME[["x"]]))
        example = log_python(log, "python_example_hint", ByExample(), input_example=["a", "b"])
    assert await trial.rows(hinted, FRAME) == [{"x": 2 * x} for x in FRAME["x"]]
    assert (await trial.batch(hinted, FRAME))["x"].tolist() == (2 * FRAME["x"]).tolist()
    assert "column name" in await trial.refusal(hinted, split(FRAME.iloc[[0]].assign(name=5)))
    assert await trial.together(example, [{"inputs": [t]} for t in "ab"]) == [["a in a list"], ["b in a list"]]


# Outputs.


class Answers(PythonModel):
    """What its param `kind` names."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        x, n = model_input["x"], len(model_input)
        match params["kind"]:
            case "frame":
                times = pd.Timestamp("2026-01-01T12:00") + pd.to_timedelta(x, unit="h")
                return pd.DataFrame({"twice": 2 * x, "when": times, "late": x > 2, "label": [f"<{v:g}>" for v in x]})
            case "texts":
                return [f"<{v:g}>" for v in x]
            case "series":
                return pd.Series([f"<{v:g}>" for v in x], index=np.arange(n) + 7)
            case "objects":
                return [{"x": v, "near": [v - 1, v + 1]} for v in x]
            case "lists":
                return [[v] * 2 for v in x]
            case "pydantic":
                return [Address(town=f"<{v:g}>", number=int(v)) for v in x]
            case "named":
                return {"twice": (2 * x).tolist(), "rows": n}
            case "one":
                return f"{n} rows"


@pytest.fixture(scope="session")
def answers(log: LogModel) -> str:
    signature = infer_signature(FRAME[["x"]], params={"kind": "frame"})
    return log_python(log, "python_answers", Answers(), signature=signature)


def expected(kind: str, x: float) -> Any:
    return {
        "frame": {"twice": 2 * x, "when": f"2026-01-01T{12 + x:02.0f}:00:00", "late": x > 2, "label": f"<{x:g}>"},
        "texts": f"<{x:g}>",
        "series": f"<{x:g}>",
        "objects": {"x": x, "near": [x - 1, x + 1]},
        "lists": [x, x],
        "pydantic": {"town": f"<{x:g}>", "number": int(x)},
    }[kind]


@pytest.mark.parametrize("kind", ["frame", "texts", "series", "objects", "lists", "pydantic"])
async def test_outputs_with_an_entry_a_row(trial: Trial, answers: str, kind: str) -> None:
    found = await trial.rows(answers, FRAME[["x"]], {"kind": kind})
    assert found == [expected(kind, x) for x in FRAME["x"]]
    assert await trial.one(answers, split(FRAME[["x"]]), {"kind": kind}) == found


async def test_a_frame_of_times_from_a_backlog(trial: Trial, answers: str) -> None:
    found = await trial.batch(answers, FRAME[["x"]])
    pd.testing.assert_frame_equal(found, Answers().predict(None, FRAME[["x"]], {"kind": "frame"}), check_dtype=False)


@pytest.mark.parametrize(("kind", "answer"), [("named", {"twice": [2.0], "rows": 1}), ("one", "1 rows")])
async def test_outputs_of_the_whole_call_are_made_for_each_job_alone(
    trial: Trial, answers: str, kind: str, answer: Any
) -> None:
    inputs = [split(FRAME[["x"]].iloc[[0]])] * 4
    assert await trial.together(answers, inputs, {"kind": kind}, one_call=False) == [answer] * 4


class Streams(PythonModel):
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return ["".join(self.predict_stream(context, model_input.iloc[[i]])) for i in range(len(model_input))]

    def predict_stream(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Iterator[str]:
        yield from ("the ", "name ", model_input["name"].iloc[0])


class OnlyStreams(PythonModel):
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return self.predict_stream(context, model_input)

    def predict_stream(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Iterator[str]:
        yield "a part"


async def test_of_a_model_that_streams_predict_is_asked(log: LogModel, trial: Trial) -> None:
    signature = infer_signature(FRAME[["name"]], ["a"])
    uri = log_python(log, "python_streams", Streams(), signature=signature)
    assert await trial.rows(uri, FRAME[["name"]]) == [f"the name {name}" for name in FRAME["name"]]
    uri = log_python(log, "python_only_streams", OnlyStreams(), signature=signature)
    assert "invalid_output" in (said := await trial.refusal(uri, split(FRAME[["name"]].iloc[[0]])))
    assert "generator" in said


# Tensors and columns of lists.


class Brightness(PythonModel):
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:
        if isinstance(model_input, dict):
            return model_input["image"].mean(axis=(1, 2)) * model_input["gain"]
        assert model_input.shape[1:] == (8, 8)
        return model_input.mean(axis=(1, 2))


IMAGES = np.random.default_rng(3).integers(0, 255, (9, 8, 8)).astype(np.float32)


async def test_images(log: LogModel, trial: Trial) -> None:
    uri = log_python(log, "python_images", Brightness(), signature=infer_signature(IMAGES, IMAGES.mean(axis=(1, 2))))
    means = IMAGES.mean(axis=(1, 2)).tolist()
    assert_same(await trial.together(uri, [{"instances": [image]} for image in IMAGES.tolist()]), [[m] for m in means])
    for cells in (IMAGES.tolist(), IMAGES.reshape(9, -1).tolist()):
        assert_same((await trial.batch(uri, pd.DataFrame({"image": cells})))["prediction"].tolist(), means)
    assert_same(
        (await trial.batch(uri, pd.DataFrame({"image": list(IMAGES.reshape(9, -1))})))["prediction"].tolist(), means
    )


async def test_named_tensors(log: LogModel, trial: Trial) -> None:
    schema = Schema(
        [TensorSpec(np.dtype("float32"), (-1, 8, 8), "image"), TensorSpec(np.dtype("float64"), (-1,), "gain")]
    )
    uri = log_python(log, "python_named_images", Brightness(), signature=ModelSignature(schema))
    means = (2 * IMAGES.mean(axis=(1, 2))).tolist()
    inputs: list[Any] = [{"inputs": {"image": [image], "gain": [2]}} for image in IMAGES.tolist()]
    assert_same(await trial.together(uri, inputs), [[m] for m in means])
    records = [{"instances": [{"image": image, "gain": 2}]} for image in IMAGES.tolist()]
    assert_same(await trial.together(uri, records), [[m] for m in means])
    frame = pd.DataFrame({"gain": 2.0, "image": IMAGES.reshape(9, -1).tolist()})
    assert_same((await trial.batch(uri, frame))["prediction"].tolist(), means)
    assert "gain" in await trial.refusal(uri, {"inputs": {"image": IMAGES[:1].tolist(), "gain": ["high"]}})
    assert "gain" in await trial.refusal(uri, {"inputs": {"image": IMAGES[:1].tolist()}})


class Norm(PythonModel):
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return [float(np.linalg.norm(v)) + k for v, k in zip(model_input["vector"], model_input["k"], strict=True)]


async def test_a_column_of_lists(log: LogModel, trial: Trial) -> None:
    frame = pd.DataFrame({"vector": [[3.0, 4.0], [6.0, 8.0], [0.0, 1.0], [1.0, 0.0]], "k": [1.0, 2.0, 3.0, 4.0]})
    uri = log_python(log, "python_vectors", Norm(), signature=infer_signature(frame, [1.0]))
    assert await trial.rows(uri, frame) == [6.0, 12.0, 4.0, 5.0]
    assert (await trial.batch(uri, frame))["prediction"].tolist() == [6.0, 12.0, 4.0, 5.0]
    assert (await trial.batch(uri, frame.assign(vector=[np.array(v) for v in frame["vector"]])))[
        "prediction"
    ].tolist() == [6.0, 12.0, 4.0, 5.0]
    said = await trial.refusal(uri, {"dataframe_split": {"columns": ["vector", "k"], "data": [[["a"], 1.0]]}})
    assert said.startswith("invalid_input")
    assert "vector" in said


class Bare(PythonModel):
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:
        if isinstance(model_input, pd.DataFrame):
            return [f"frame of {', '.join(model_input)}: {model_input.dtypes.iloc[0]}"] * len(model_input)
        return [f"{type(model_input).__name__}"] * len(model_input)


async def test_without_a_signature(log: LogModel, trial: Trial) -> None:
    with quiet():
        uri = log_python(log, "python_bare", Bare())
    assert await trial.rows(uri, FRAME) == ["frame of x, name: float64"] * 6
    assert set((await trial.batch(uri, FRAME))["prediction"]) == {"frame of x, name: float64"}
    assert await trial.one(uri, {"dataframe_records": [{"y": 1}]}) == ["frame of y: int64"]
    assert await trial.together(uri, [{"inputs": [[1.0, 2.0]]}, {"inputs": [[3.0, 4.0]]}]) == [["ndarray"]] * 2
    assert await trial.one(uri, {"inputs": {"a": [1], "b": [2]}}) == ["dict"] * 2, "one entry a name"
