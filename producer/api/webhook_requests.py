"""The webhook that a caller names with a job, checked."""

from typing import Any

from producer.api.callers import Caller
from producer.api.service import Service
from pyfunq.errors import InvalidInput
from pyfunq.options import JobOptions

_FIELD = "webhook"
_FINAL = "final"


async def with_webhook(service: Service, caller: Caller, asked: Any, options: JobOptions) -> JobOptions:
    """The options with the URL that `asked` names, checked. Raises InvalidInput."""
    if asked is None:
        return options
    return await service.with_webhook(caller, options, _url(asked))


def _url(asked: Any) -> str:
    if not isinstance(asked, dict) or not asked.keys() <= {"url", "events"}:
        raise InvalidInput('webhook is an object with "url", and perhaps "events"', field=_FIELD)
    if asked.get("events", [_FINAL]) != [_FINAL]:
        raise InvalidInput('a webhook\'s events are ["final"]', field=_FIELD)
    url = asked.get("url")
    if not isinstance(url, str):
        raise InvalidInput("a webhook's url must be a text", field=_FIELD)
    return url
