"""A batch's results a job's share at a time, as they are kept: what the Python client reads."""

import base64
from typing import Annotated
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response

from producer.api.bodies import JSON
from producer.api.jobs import PROBLEMS
from producer.api.many_schemas import BatchParts
from producer.api.state import caller_of, service_of
from producer.api.views import BATCHES, error_view
from pyfunq.api_keys import Scope
from pyfunq.entries import StoredResult
from pyfunq.http_wire import ARROW_FIELD

router = APIRouter(prefix=BATCHES, tags=["batches"])


@router.get(
    "/{batch_id}/parts", response_model=BatchParts, responses={s: PROBLEMS[s] for s in (401, 403, 404, 422, 429, 503)}
)
async def get_parts(
    request: Request,
    batch_id: UUID,
    start: Annotated[int, Query(ge=0, le=2**31 - 1, description="`next` of the page before.")] = 0,
) -> Response:
    """A batch's results in input order, a job's share each: up to 1,000 of them or 8 MiB."""
    service = service_of(request)
    await service.check_batch(await caller_of(request, Scope.READ), batch_id)
    found = await service.parts(batch_id, start)
    after = str(found[-1][0] + 1).encode() if found else b"null"
    data = b",".join(_part(index, rows, stored) for index, rows, stored in found)
    return Response(b'{"data":[%b],"next":%b}' % (data, after), media_type=JSON)


def _part(index: int, rows: int, stored: StoredResult) -> bytes:
    """JSON that is kept as JSON goes as it is."""
    head = orjson.dumps({"index": index, "rows": rows, "status": str(stored.status), "error": error_view(stored.error)})
    if stored.payload is None:
        return head
    if stored.format == "arrow":
        return b'%b,"%b":"%b"}' % (head[:-1], ARROW_FIELD.encode(), base64.b64encode(stored.payload))
    return b'%b,"predictions":%b}' % (head[:-1], stored.payload)
