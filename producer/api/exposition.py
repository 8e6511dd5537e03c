"""`/metrics`: what this process counted and what the ledger says, in Prometheus' format or as OpenMetrics."""

import asyncio
import hmac
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Metric, exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from producer.api.callers import Caller
from producer.api.jobs import PROBLEMS
from producer.api.problems import Problem
from producer.api.state import State, caller_of, state_of
from pyfunq import metrics
from pyfunq.api_keys import Scope
from pyfunq.metrics import METRICS, Sample

router = APIRouter(tags=["operations"])

_OPENMETRICS = "application/openmetrics-text"
_OPENMETRICS_TYPE = f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Metrics", "content": {"text/plain": {}, _OPENMETRICS: {}}},
        **{s: PROBLEMS[s] for s in (400, 401, 403)},
    },
)
async def read_metrics(request: Request) -> Response:
    """Metrics of this API process and, together, of the ledger and all worker processes."""
    state = state_of(request)
    if not _has_token(request, state):
        _check_sees_all_models(await caller_of(request, Scope.READ))
    here = [
        *state.metrics.recorder.samples(),
        Sample(metrics.IN_PROGRESS.name, (), float(state.metrics.in_progress)),
    ]
    told = [*here, *await state.ledger_metrics.samples()]
    as_openmetrics = _OPENMETRICS in request.headers.get("accept", "").lower()
    text = await asyncio.to_thread(exposed, told, as_openmetrics=as_openmetrics)
    kind = _OPENMETRICS_TYPE if as_openmetrics else exposition.CONTENT_TYPE_PLAIN_0_0_4
    return Response(text, headers={"Content-Type": kind, "Cache-Control": "no-store"})


def _has_token(request: Request, state: State) -> bool:
    token = state.settings.metrics_token
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if not token or scheme.lower() != "bearer":  # nor with an empty one, as an unset variable in a compose file gives
        return False
    return hmac.compare_digest(sent.strip().encode(), token.get_secret_value().encode())


def _check_sees_all_models(caller: Caller) -> None:
    """What there is besides the models of a key is not its owner's to know."""
    if caller.key is not None and caller.key.models:
        raise Problem(403, "this API key is for some models only, and the metrics are of all")


def exposed(samples: Iterable[Sample], *, as_openmetrics: bool = False) -> bytes:
    """Each metric once, in the order of `METRICS`, with its help and type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(samples))
    if as_openmetrics:
        return bytes(openmetrics.generate_latest(registry))  # type: ignore[no-untyped-call]
    return exposition.generate_latest(registry)


class _Told(Collector):
    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_name.setdefault(sample.name, []).append(sample)

    def collect(self) -> Iterator[Metric]:
        for name, known in METRICS.items():
            if samples := self._by_name.get(name):
                yield _family(known, samples)


def _family(known: metrics.Metric, samples: Sequence[Sample]) -> Metric:
    family = Metric(
        known.name.removesuffix("_total") if known.kind == "counter" else known.name, known.help, known.kind
    )
    for sample in samples:
        labels = dict(zip(known.labels, sample.labels, strict=True))
        if sample.counts is None:
            family.add_sample(known.name, labels, sample.total)
            continue
        upto = list(accumulate(sample.counts))
        for bound, count in zip((*known.buckets, float("inf")), upto, strict=True):
            le = floatToGoString(bound)  # type: ignore[no-untyped-call]
            family.add_sample(f"{known.name}_bucket", {**labels, "le": le}, count)
        family.add_sample(f"{known.name}_count", labels, upto[-1])
        family.add_sample(f"{known.name}_sum", labels, sample.total)
    return family
