"""The Open Inference Protocol: a client of its own, columns and arrays, what is refused and how."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import Schema, TensorSpec
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.errors import BadRequestError, NotFoundError
from open_inference.openapi.types import InferenceRequest, RequestInput

from pyfunq.http_transport import trusted
from tests.conftest import RegisterModel, Servers
from tests.integration.api.conftest import MakeKey, Workers
from tests.integration.conftest import IRIS, SETOSA, VIRGINICA

pytestmark = pytest.mark.usefixtures("iris_model")


@pytest.fixture
def client(api_url: str) -> Iterator[OpenInferenceClient]:
    with httpx.Client(timeout=60, verify=trusted()) as connection:
        yield OpenInferenceClient(base_url=api_url, httpx_client=connection)


def columns() -> list[dict[str, Any]]:
    values = zip(SETOSA, VIRGINICA, strict=True)
    return [{"name": n, "shape": [2], "datatype": "FP64", "data": list(v)} for n, v in zip(IRIS, values, strict=True)]


async def infer(http: httpx.AsyncClient, workers: Workers, path: str, **body: Any) -> httpx.Response:
    answer = await workers.while_(http.post(f"/v2/models/{path}/infer", json=body))
    assert isinstance(answer, httpx.Response)
    return answer


async def test_a_client_of_the_protocol(client: OpenInferenceClient, workers: Workers) -> None:
    await asyncio.to_thread(client.check_server_liveness)
    await asyncio.to_thread(client.check_server_readiness)
    assert (await asyncio.to_thread(client.read_server_metadata)).name == "pyfunq"
    await asyncio.to_thread(client.check_model_readiness, "iris")
    await asyncio.to_thread(client.check_model_version_readiness, "iris", "1")
    asked = InferenceRequest(id="request-1", inputs=[RequestInput(**one) for one in columns()])
    answer = await workers.while_(asyncio.to_thread(client.model_version_infer, "iris", "1", request=asked))
    assert (answer.id, answer.model_name, answer.model_version) == ("request-1", "iris", "1")
    (output,) = answer.outputs
    assert (output.datatype, output.shape, output.data.__root__) == ("INT64", [2], [0, 2])
    about = await asyncio.to_thread(client.read_model_version_metadata, "iris", "1")
    assert about.versions == ["1"]
    with pytest.raises(NotFoundError) as unknown:
        await asyncio.to_thread(client.check_model_readiness, "no-such-model")
    assert unknown.value.body == {"error": "there is no registered model 'no-such-model'"}
    odd = InferenceRequest(inputs=[RequestInput(name="x", shape=[3], datatype="FP64", data=[1.0])])
    with pytest.raises(BadRequestError):
        await asyncio.to_thread(client.model_infer, "iris", request=odd)


async def test_columns_of_a_frame_or_one_matrix(http: httpx.AsyncClient, workers: Workers) -> None:
    first = await infer(http, workers, "iris/versions/1", inputs=columns())
    assert first.status_code == 200, first.text
    about = (await http.get("/v2/models/iris/versions/1")).json()
    while not about["inputs"]:  # it looks for a signature that it has not found every two seconds
        about = (await http.get("/v2/models/iris/versions/1")).json()
    assert about["inputs"] == [{"name": name, "datatype": "FP64", "shape": [-1]} for name in IRIS]
    matrix = {"name": "input-0", "shape": [2, 4], "datatype": "FP32", "data": [*SETOSA, *VIRGINICA]}
    nested = {**matrix, "data": [SETOSA, VIRGINICA]}
    for inputs in ([matrix], [nested], columns()[::-1], [{**c, "shape": [2, 1]} for c in columns()]):
        answer = await infer(http, workers, "iris/versions/1", inputs=inputs, outputs=[{"name": "predict"}])
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"] == [{"name": "predict", "shape": [2], "datatype": "INT64", "data": [0, 2]}]
    texts = [{**columns()[0], "datatype": "BYTES", "data": ["tall", "small"]}, *columns()[1:]]
    refused = await http.post("/v2/models/iris/versions/1/infer", json={"inputs": texts})
    assert refused.status_code == 400
    assert "/inputs/0/data/0" in refused.json()["error"]
    assert "tall" not in refused.text


async def test_a_body_without_a_media_type_is_json_as_tritons_client_has_it(
    http: httpx.AsyncClient, workers: Workers
) -> None:
    asked = {"inputs": columns(), "parameters": {"binary_data_output": True}}
    answer = await workers.while_(http.post("/v2/models/iris/versions/1/infer", content=json.dumps(asked)))
    assert answer.status_code == 200, answer.text
    binary = {"Inference-Header-Content-Length": "10"}
    refused = await http.post("/v2/models/iris/infer", content=b"{}", headers=binary)
    assert (refused.status_code, set(refused.json())) == (415, {"error"})


class Scaled(PythonModel):
    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:
        factor = (params or {}).get("factor", 1.0)
        return [{"sum": float(row.sum() * factor), "label": "big" if row.sum() > 5 else None} for row in model_input]


@pytest.fixture(scope="session")
def scaled_model(servers: Servers, register: RegisterModel) -> str:
    """Takes an array, and a param."""
    import mlflow
    from mlflow.types import ParamSchema, ParamSpec

    mlflow.set_tracking_uri(servers.mlflow)
    mlflow.set_experiment("tests scaled")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float64"), (-1, 2, 2))]),
        params=ParamSchema([ParamSpec("factor", "double", 1.0)]),
    )
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            python_model=Scaled(),
            name="model",
            signature=signature,
            registered_model_name="scaled",
            pip_requirements=[],
        )
    return "scaled"


async def test_arrays_params_and_several_outputs(http: httpx.AsyncClient, workers: Workers, scaled_model: str) -> None:
    array = {"name": "images", "shape": [2, 2, 2], "datatype": "FP64", "data": [1.0] * 4 + [2.0] * 4}
    for _ in range(2):  # before the signature is known, and after
        answer = await infer(http, workers, scaled_model, inputs=[array], parameters={"factor": 10.0, "priority": 1})
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"] == [
            {"name": "sum", "shape": [2], "datatype": "FP64", "data": [40.0, 80.0]},
            {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["null", "big"]},
        ]
    one = await infer(http, workers, scaled_model, inputs=[array], outputs=[{"name": "label"}])
    assert [output["name"] for output in one.json()["outputs"]] == ["label"]


_INPUT = {"name": "x", "shape": [2], "datatype": "FP64", "data": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "/inputs"),
        ({"inputs": []}, "/inputs"),
        ({"inputs": [1]}, "/inputs/0"),
        ({"inputs": [{**_INPUT, "shape": [3]}]}, "/inputs/0/data"),
        ({"inputs": [{**_INPUT, "shape": [2**62, 2**62]}]}, "/inputs/0/shape"),
        ({"inputs": [{**_INPUT, "shape": [-1]}]}, "/inputs/0/shape"),
        ({"inputs": [{**_INPUT, "datatype": "FP128"}]}, "/inputs/0/datatype"),
        ({"inputs": [{**_INPUT, "datatype": "INT8", "data": [1, 128]}]}, "/inputs/0/data"),
        ({"inputs": [{**_INPUT, "datatype": "BYTES"}]}, "/inputs/0/data"),
        ({"inputs": [_INPUT, _INPUT]}, "/inputs"),
        ({"inputs": [_INPUT, {**_INPUT, "name": "y", "shape": [1], "data": [1.0]}]}, "/inputs/1/shape"),
        ({"inputs": [_INPUT], "parameters": []}, "/parameters"),
        ({"inputs": [_INPUT], "outputs": [{}]}, "/outputs"),
        ({"inputs": [_INPUT], "id": 7}, "id"),
    ],
)
async def test_what_is_refused(http: httpx.AsyncClient, body: dict[str, Any], says: str) -> None:
    answer = await http.post("/v2/models/iris/infer", json=body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert says in answer.json()["error"]


async def test_errors_have_the_protocols_shape_throughout(http: httpx.AsyncClient, make_key: MakeKey) -> None:
    await make_key()
    async with asyncio.timeout(10):  # a server that had no key looks for one every second
        answer = await http.get("/v2/models/iris")
        while answer.status_code != 401:
            answer = await http.get("/v2/models/iris")
    assert set(answer.json()) == {"error"}
    assert (await http.get("/v2/health/ready")).json() == {"ready": True}
    key = await make_key("acme", models=["models:/iris/*"])
    other = await http.post("/v2/models/moody/infer", json={"inputs": [_INPUT]}, headers=key)
    assert (other.status_code, set(other.json())) == (404, {"error"})
