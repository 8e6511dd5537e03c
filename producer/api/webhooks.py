"""Webhooks of jobs: whom their ends are told, and what was delivered."""

from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Request, Response

from producer.api.bodies import JSON
from producer.api.jobs import PROBLEMS
from producer.api.problems import Problem
from producer.api.schemas import WebhookView
from producer.api.state import caller_of, service_of
from producer.api.views import JOBS
from pyfunq.api_keys import Scope
from pyfunq.job_view import time_view
from pyfunq.webhooks import Webhook

router = APIRouter(prefix=JOBS, tags=["webhooks"])


@router.get(
    "/{job_id}/webhook", response_model=WebhookView, responses={s: PROBLEMS[s] for s in (401, 403, 404, 422, 503)}
)
async def get_webhook(request: Request, job_id: UUID) -> Response:
    """Whom the job's end is told, and every attempt that was made."""
    service = service_of(request)
    caller = await caller_of(request, Scope.READ)
    await service.find(caller, job_id)
    found = await service.webhook(job_id)
    if found is None:
        raise Problem(404, f"job {job_id} was submitted without a webhook")
    return Response(orjson.dumps(_view(found)), media_type=JSON)


def _view(webhook: Webhook) -> dict[str, Any]:
    return {
        "url": webhook.url,
        "status": str(webhook.status),
        "event": webhook.event and f"job.{webhook.event}",
        "attempts": webhook.attempts,
        "next_attempt_at": time_view(webhook.next_at),
        "deliveries": [
            {
                "event": f"job.{made.event}",
                "attempt": made.attempt,
                "at": time_view(made.at),
                "status_code": made.status_code,
                "error": made.error,
                "seconds": round(made.seconds, 3),
            }
            for made in webhook.deliveries
        ],
    }
