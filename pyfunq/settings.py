"""One frozen value with everything that can be configured, read from PYFUNQ_* by the programs' entry points."""

from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pyfunq.errors import NotConfigured
from pyfunq.input_roots import InputRoots
from pyfunq.webhook_urls import WebhookRules, networks_of, ports_of

MIB = 1024 * 1024


class Settings(BaseSettings):
    """Build it once, at a program's entry point, and pass it down; nothing reads the environment later."""

    model_config = SettingsConfigDict(env_prefix="PYFUNQ_", frozen=True, extra="ignore", populate_by_name=True)

    home: Path = Field(default_factory=lambda: default_home())
    """State directory of the embedded servers, the artifact cache and the logs."""
    database_url: SecretStr | None = None
    """postgresql://user:password@host/name; also a socket: postgresql://user@/name?host=/directory."""
    redis_url: SecretStr | None = None
    """redis://:password@host:port/0, or rediss:// for TLS."""
    mlflow_tracking_uri: str | None = Field(
        default=None, validation_alias=AliasChoices("PYFUNQ_MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI")
    )

    api_url: str | None = None
    """Of a PyFunQ API: where only this is set, and no database_url, clients use it."""
    api_key: SecretStr | None = None
    """What clients show to it."""

    allowed_models: Annotated[tuple[str, ...], NoDecode] = ("models:/*",)
    """Comma-separated patterns (`*` and `?`) of model URIs that may be asked for; `runs:/` needs one of its own."""
    input_roots: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated absolute directories and URL prefixes; jobs may name Parquet files under these, and no others."""
    max_input_bytes: int = Field(default=10 * MIB, gt=0)
    """The largest encoded input of one job."""
    max_upload_bytes: int = Field(default=4 * 1024 * MIB, gt=0)
    """The largest body of a batch that comes over HTTP, as it is sent and inflated."""
    chunk_rows: int = Field(default=10_000, gt=0)
    """Rows per job of a batch, fewer where they would exceed max_input_bytes, or a call of them batch_max_seconds."""
    max_queued_jobs: int = Field(default=1_000_000, gt=0)
    """Queued jobs a lane; beyond that submits are refused for a while."""
    idempotency_seconds: float = Field(default=86_400.0, gt=0)
    """How long an idempotency key stands for its job."""
    max_attempts: int = Field(default=3, gt=0, le=100)
    """How many worker processes a job may cost before it is `dead`."""

    batch_max_rows: int = Field(default=10_000, gt=0)
    """A micro-batch ends with the job that reaches this many rows."""
    batch_max_jobs: int = Field(default=1_024, gt=0)
    """More than a page of `submit_many` has: so one claim takes it, and need not look whether there are more."""
    batch_max_bytes: int = Field(default=32 * MIB, gt=0)
    batch_max_seconds: float = Field(default=0.05, gt=0)
    """Rows of a call are as many as take about this long, as measured, where that is fewer than batch_max_rows."""

    registry_watch_seconds: float = Field(default=5.0, gt=0)
    rescue_seconds: float = Field(default=5.0, gt=0)
    heartbeat_seconds: float = Field(default=5.0, gt=0)
    stale_seconds: float = Field(default=20.0, gt=0)
    """A worker process whose heartbeat is older than this is taken for dead."""
    publish_grace_seconds: float = Field(default=10.0, gt=0)
    """A queued job younger than this is not published again."""

    preload: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated model URIs that a worker process loads before it takes messages, and never drops."""
    fallback_latest: bool = False
    """A stage or alias that no version has stands for the latest version."""
    model_cache_count: int = Field(default=10, gt=0)
    model_cache_bytes: int | None = Field(default=None, gt=0)
    """Bounds of one process's models, in measured memory; by default its share of half of the memory limit."""
    model_disk_bytes: int = Field(default=20 * 1024 * MIB, gt=0)
    """Model files on a host beyond this are dropped, least recently used first, never one in use."""
    model_envs: Literal["off", "auto"] = "off"
    """auto: a model whose requirements this environment does not meet runs in an environment made from them."""
    model_envs_bytes: int = Field(default=20 * 1024 * MIB, gt=0)
    """Environments on a host beyond this are dropped, least recently used first, never one in use."""
    load_failure_seconds: float = Field(default=10.0, ge=0)
    """For this long a model that could not be loaded is not tried again."""
    confidence: bool = False
    """Record predict_proba's largest value per row where the model has it (per model: tag `pyfunq.confidence`)."""

    concurrency: int | None = Field(default=None, gt=0)
    """Worker processes; the default is one a core."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """How long a job's call may take where neither the job nor its model (tag `pyfunq.timeout`) says."""
    load_timeout_seconds: float = Field(default=300.0, gt=0)
    dependency_wait_seconds: float = Field(default=86_400.0, ge=0)
    """For this long a job waits for MLflow, the artifact store or what its model asks; then it fails."""
    longest_pause_seconds: float = Field(default=60.0, gt=0)
    """Pauses before another try grow to this."""
    max_memory_bytes: int | None = Field(default=None, gt=0)
    """A worker process that holds more than this during a call is killed."""
    recycle_memory_bytes: int | None = Field(default=None, gt=0)
    """A worker process that has held more than this is replaced after its task."""
    recycle_tasks: int | None = Field(default=None, gt=0)
    """A worker process is replaced after this many tasks."""
    drain_seconds: int = Field(default=25, gt=0)

    trusted_models: Path | None = None
    """A JSON file, {"name/version": "sha256:..."}: workers load these and no others, and only with such files."""
    allow_pickle: bool = True
    """false: workers load no model whose files can bring code of their own."""

    api_require_key: bool = False
    """Without any API key the API refuses everybody, and may listen anywhere."""
    api_per_second: float | None = Field(default=None, gt=0)
    """Requests a second of a caller whose key says nothing else; a process of the API counts for itself."""
    api_max_requests: int = Field(default=4_000, gt=0)
    """Requests that a process of the API works on at once; those that wait for a job count too."""
    api_max_requests_per_key: int = Field(default=1_000, gt=0)
    api_slow_seconds: float = Field(default=20.0, gt=0)
    """A request's head must come within this time, and of its body 1 KB for each second of every such span."""
    api_wait_seconds: float = Field(default=60.0, gt=0, le=3600)
    """How long the HTTP API's scoring routes wait for a job; then they answer 504, and the job goes on."""
    api_model: str | None = None
    """A model's name or URI: what the HTTP API's scoring routes ask where the caller names none."""
    webhook_allow_http: bool = False
    """Whether jobs may name http:// URLs to be told at; else only https://."""
    webhook_ports: Annotated[tuple[str, ...], NoDecode] = ("80", "443", "8000-9999")
    """Comma-separated ports and ranges of them that such URLs may have."""
    webhook_networks: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated networks that are not public, and yet may be told; such as 10.1.0.0/16."""
    mlflow_webhook_secret: SecretStr | None = None
    """That of the webhook by which MLflow tells of changes; None: nobody is listened to."""
    metrics_token: SecretStr | None = None
    """Who brings it as a bearer token may read the API's metrics, and nothing else."""

    flower_user: str = "pyfunq"
    flower_password: SecretStr | None = None

    @field_validator("allowed_models", "input_roots", "preload", "webhook_ports", "webhook_networks", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(p.strip() for p in value.split(",") if p.strip()) if isinstance(value, str) else value

    @field_validator("input_roots")
    @classmethod
    def _are_roots(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        InputRoots(value)
        return value

    @field_validator("webhook_ports")
    @classmethod
    def _are_ports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        ports_of(value)
        return value

    @field_validator("webhook_networks")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        networks_of(value)
        return value

    @property
    def database(self) -> str:
        return self._required("database_url", "PYFUNQ_DATABASE_URL")

    @property
    def redis(self) -> str:
        return self._required("redis_url", "PYFUNQ_REDIS_URL")

    @property
    def mlflow(self) -> str:
        return self._required("mlflow_tracking_uri", "MLFLOW_TRACKING_URI")

    @property
    def webhook_rules(self) -> WebhookRules:
        return WebhookRules(self.webhook_allow_http, ports_of(self.webhook_ports), networks_of(self.webhook_networks))

    def _required(self, field: str, variable: str) -> str:
        value = getattr(self, field)
        if value is None:
            raise NotConfigured(f"{variable} is not set; set it, or start everything on this machine with `pyfunq up`")
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def default_home() -> Path:
    """The platform's state directory; for root the system's, which PostgreSQL's own user can reach."""
    return platformdirs.PlatformDirs("pyfunq", appauthor=False, use_site_for_root=True).user_state_path
