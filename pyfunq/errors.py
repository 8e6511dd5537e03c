"""Every error that PyFunQ raises or records, under one root.

Each class says three things that callers act on: a stable `code`, whose `fault` it is, and whether the same
request can succeed later (`retryable`). The message never holds input values or secrets.
"""

from typing import ClassVar, Literal

Fault = Literal["caller", "model", "operator", "dependency"]


class PyFunQError(Exception):
    """Something went wrong in PyFunQ."""

    code: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = "operator"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        return str(self.args[0])


# What the caller sent.


class InvalidInput(PyFunQError):
    """The input is not what the model takes."""

    code = "invalid_input"
    fault = "caller"

    def __init__(self, message: str | None = None, *, field: str | None = None, row: int | None = None) -> None:
        """`row`: where in the input it is, counted from 1."""
        super().__init__(message)
        self.field = field
        self.row = row


class InputTooLarge(InvalidInput):
    """The input is larger than PYFUNQ_MAX_INPUT_BYTES allows."""

    code = "input_too_large"


class MalformedInput(InvalidInput):
    """The input is not strict JSON."""

    code = "malformed_input"


class InvalidModelURI(PyFunQError):
    """This is not a model URI; use models:/<name>/<version or stage>, models:/<name>@<alias>, models:/<name>/latest."""

    code = "invalid_model_uri"
    fault = "caller"


class ModelNotAllowed(PyFunQError):
    """The operator does not allow this model URI (PYFUNQ_ALLOWED_MODELS)."""

    code = "model_not_allowed"
    fault = "caller"


class IdempotencyConflict(PyFunQError):
    """This idempotency key stands for another request."""

    code = "idempotency_conflict"
    fault = "caller"


class UnknownJob(PyFunQError):
    """There is no such job."""

    code = "unknown_job"
    fault = "caller"


class UnknownBatch(PyFunQError):
    """There is no such batch."""

    code = "unknown_batch"
    fault = "caller"


class UnknownKey(PyFunQError):
    """There is no such API key."""

    code = "unknown_key"
    fault = "caller"


class FileUnreadable(PyFunQError):
    """The file is missing, damaged or not in the format that its name says."""

    code = "file_unreadable"
    fault = "caller"


class InputNotAllowed(PyFunQError):
    """The operator does not let jobs name this file (PYFUNQ_INPUT_ROOTS)."""

    code = "input_not_allowed"
    fault = "caller"


class InputChanged(PyFunQError):
    """The file that the job names was changed or removed after it was submitted."""

    code = "input_changed"
    fault = "caller"


class SubmissionStopped(PyFunQError):
    """Submitting the batch stopped before its end."""

    code = "submission_stopped"
    fault = "caller"


# The model.


class ModelNotFound(PyFunQError):
    """The registry has no such model, version, stage or alias."""

    code = "model_not_found"
    fault = "caller"


class ModelNotLoadable(PyFunQError):
    """The model's files are there, but it cannot be loaded."""

    code = "model_not_loadable"
    fault: ClassVar[Fault] = "model"


class ModelUntrusted(ModelNotLoadable):
    """The operator does not let workers load this model's files (PYFUNQ_TRUSTED_MODELS, PYFUNQ_ALLOW_PICKLE)."""

    code = "model_untrusted"
    fault = "operator"


class ModelRaised(PyFunQError):
    """The model raised an exception while predicting."""

    code = "model_raised"
    fault = "model"


class TimedOut(PyFunQError):
    """The model did not answer in time."""

    code = "timed_out"
    fault = "model"


class ModelDependencyUnavailable(PyFunQError):
    """Something that the model itself asks, such as a gateway or a feature store, is away or overloaded."""

    code = "model_dependency_unavailable"
    fault = "dependency"
    retryable = True


class InvalidOutput(PyFunQError):
    """The model returned something that cannot be stored as predictions of these rows."""

    code = "invalid_output"
    fault = "model"


# How a job ended, for those who asked for its result.


class JobFailed(PyFunQError):
    """The job failed."""

    code = "job_failed"
    fault: ClassVar[Fault] = "caller"

    def __init__(self, message: str | None = None, *, error_code: str | None = None) -> None:
        super().__init__(message)
        self.error_code = error_code


class JobCancelled(JobFailed):
    """The job was cancelled."""

    code = "job_cancelled"


class JobExpired(JobFailed):
    """The job's deadline passed before a worker took it."""

    code = "job_expired"


class JobDead(JobFailed):
    """The job took its worker down too often."""

    code = "job_dead"
    fault = "model"


class WaitTimeout(PyFunQError, TimeoutError):
    """The job was not finished in time; it goes on."""

    code = "wait_timeout"
    fault = "dependency"
    retryable = True


# What PyFunQ stands on.


class LedgerUnavailable(PyFunQError):
    """Postgres cannot be reached."""

    code = "ledger_unavailable"
    fault = "dependency"
    retryable = True


class InputUnavailable(PyFunQError):
    """The file that the job names cannot be read now."""

    code = "input_unavailable"
    fault = "dependency"
    retryable = True


class BacklogFull(PyFunQError):
    """The lane holds as many queued jobs as it may (PYFUNQ_MAX_QUEUED_JOBS)."""

    code = "backlog_full"
    fault = "dependency"
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after_seconds: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class AcceptanceUnknown(LedgerUnavailable):
    """Postgres went away during the commit and did not come back: the jobs may have been accepted, all or none.

    A submit with an idempotency key can simply be repeated.
    """

    code = "acceptance_unknown"
    retryable = False


class ApiUnavailable(PyFunQError):
    """The PyFunQ API cannot be reached, or cannot answer now."""

    code = "api_unavailable"
    fault = "dependency"
    retryable = True


class RateLimited(PyFunQError):
    """More requests than this API key may make; wait, then go on."""

    code = "too_many_requests"
    fault = "caller"
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unauthenticated(PyFunQError):
    """The API wants a valid key (PYFUNQ_API_KEY)."""

    code = "unauthenticated"
    fault = "caller"


class Forbidden(PyFunQError):
    """This API key may not do that."""

    code = "forbidden"
    fault = "caller"


class RequestRefused(PyFunQError):
    """The API did not take the request."""

    code = "request_refused"
    fault = "caller"

    def __init__(self, message: str | None = None, *, status: int = 0, api_code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.api_code = api_code


class WrongApi(PyFunQError):
    """What answers at this URL is no PyFunQ API."""

    code = "wrong_api"


class NotOverHttp(PyFunQError):
    """Only a client that has the database's address can do that."""

    code = "not_over_http"
    fault = "caller"


class QueueUnavailable(PyFunQError):
    """Redis cannot be reached."""

    code = "queue_unavailable"
    fault = "dependency"
    retryable = True


class RegistryUnavailable(PyFunQError):
    """The MLflow server cannot be reached."""

    code = "registry_unavailable"
    fault = "dependency"
    retryable = True


class NotConfigured(PyFunQError):
    """An address is missing; set it, or start everything on this machine with `pyfunq up`."""

    code = "not_configured"


class MigrationNeeded(PyFunQError):
    """The database's tables are older than this program; run `pyfunq migrate`."""

    code = "migration_needed"


class ServerFailed(PyFunQError):
    """A server or program on this machine did not start or ended by itself."""

    code = "server_failed"


class AlreadyRunning(PyFunQError):
    """Another PyFunQ uses this state directory."""

    code = "already_running"
