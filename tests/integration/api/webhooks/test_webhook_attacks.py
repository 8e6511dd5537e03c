"""Webhooks that must not be told, and receivers that mean ill."""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pyfunq.http_transport import trusted
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from pyfunq.webhook_urls import Address, WebhookRules, networks_of
from tests.integration.api.conftest import ApiServer, Workers
from tests.integration.api.webhooks.conftest import IRIS_1, LOOPBACK, asked, delivered, log_of, submitted
from tests.integration.api.webhooks.receiver import Handler, Receiver, status
from tests.integration.conftest import SETOSA, split
from worker import sending
from worker.webhooks import Courier

pytestmark = pytest.mark.usefixtures("iris_model")

AS_IT_COMES = {name: Settings.model_fields[name].default for name in LOOPBACK}
STRICT = WebhookRules(ports=(range(1, 65_536),))


@pytest.mark.parametrize(
    "url",
    [
        "https://169.254.169.254/latest/meta-data/",
        "https://[::ffff:127.0.0.1]/",
        "https://0x7f.1/",
        "https://2130706433/",
        "https://localhost/",
        "https://[fd00:ec2::254]/",
        "http://hooks.example/",
        "https://user:opensesame@hooks.example/",
        "https://hooks.example:6379/",
        "file:///etc/passwd",
    ],
)
async def test_a_url_that_must_not_be_told_is_refused_at_submit(url: str, settings: Settings, secret: str) -> None:
    plain = settings.model_copy(update=AS_IT_COMES)
    with ApiServer(plain) as api_url:
        async with httpx.AsyncClient(base_url=api_url, verify=trusted()) as http:
            answer = await http.post("/v1/jobs", json=asked(url))
            jobs = (await http.get("/v1/jobs")).json()["data"]
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert answer.json()["errors"][0]["pointer"] == "/webhook"
    assert not any(part in answer.text for part in ("169.254", "sesame", "passwd"))
    assert jobs == []


@pytest.mark.parametrize(
    "webhook",
    ["https://hooks.example/", [], {}, {"url": 1}, {"url": None}, {"url": "https://a.example/", "secret": "x"}]
    + [{"url": "https://a.example/", "events": events} for events in ([], ["started"], "final", None)],
)
async def test_what_is_no_webhook_is_refused(http: httpx.AsyncClient, secret: str, webhook: Any) -> None:
    answer = await http.post("/v1/jobs", json={"model": IRIS_1, **split(SETOSA), "webhook": webhook})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/webhook")


@pytest.mark.parametrize("private", ["127.0.0.1", "::ffff:127.0.0.1", "169.254.169.254", "64:ff9b::7f00:1"])
async def test_a_name_that_comes_to_mean_this_machine_is_not_asked(
    private: str, http: httpx.AsyncClient, workers: Workers, receiver: Receiver, secret: str, ledger: Ledger
) -> None:
    names: list[str] = []

    async def rebound(name: str, port: int) -> list[Address]:
        names.append(name)
        # A public address besides does not help.
        return [ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address(private)]

    job_id = await submitted(http, receiver.url(host="rebind.example").replace("http:", "https:"))
    await workers.all()
    courier = Courier(ledger, STRICT, rebound)
    await delivered(courier)
    await courier.close()
    log = await log_of(http, job_id)
    assert (log["status"], log["deliveries"][0]["error"]) == ("due", "address_refused")
    assert (receiver.told, names) == ([], ["rebind.example"])
    assert (await http.get(f"/v1/jobs/{job_id}/result")).json() == {"predictions": [0]}


async def test_the_operator_may_forbid_what_was_allowed(
    http: httpx.AsyncClient, receiver: Receiver, secret: str, ledger: Ledger
) -> None:
    job_id = await submitted(http, receiver.url())
    await ledger.cancel([job_id])
    courier = Courier(ledger, STRICT)
    await delivered(courier)
    assert (await log_of(http, job_id))["deliveries"][0]["error"] == "url_refused"
    assert receiver.told == []


async def test_a_redirect_is_not_followed(
    http: httpx.AsyncClient, receiver: Receiver, secret: str, ledger: Ledger, courier: Courier
) -> None:
    receiver.reply = status(307, Location=receiver.url("/elsewhere"))
    job_id = await submitted(http, receiver.url())
    await ledger.cancel([job_id])
    await delivered(courier)
    log = await log_of(http, job_id)
    (made,) = log["deliveries"]
    assert (log["status"], made["status_code"], made["error"]) == ("due", 307, "redirect")
    assert [told.path for told in receiver.told] == ["/in"]


async def test_an_endless_answer_is_read_for_64_kib(
    http: httpx.AsyncClient, receiver: Receiver, secret: str, ledger: Ledger, courier: Courier
) -> None:
    written = 0

    def endless(handler: Handler) -> None:
        nonlocal written
        handler.send_response(200)
        handler.end_headers()
        while not handler.server.ended.is_set():
            written += handler.wfile.write(b"x" * 4096)

    receiver.reply = endless
    job_id = await submitted(http, receiver.url())
    await ledger.cancel([job_id])
    await delivered(courier)
    (made,) = (await log_of(http, job_id))["deliveries"]
    assert (made["status_code"], made["error"]) == (200, None)
    assert written < 16 * 1024 * 1024, "what the sockets' buffers hold, and no more"


@pytest.mark.parametrize("part", ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n"])
async def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_10_seconds(
    part: str,
    http: httpx.AsyncClient,
    receiver: Receiver,
    secret: str,
    ledger: Ledger,
    courier: Courier,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sending._WHOLE_SECONDS == 10.0
    monkeypatch.setattr(sending, "_WHOLE_SECONDS", 0.5)

    def drip(handler: Handler) -> None:
        handler.wfile.write(part.encode())
        while not handler.server.ended.wait(0.05):
            if part:
                handler.wfile.write(part.encode() if "100" in part else b"X-More: 1\r\n")

    receiver.reply = drip
    job_id = await submitted(http, receiver.url())
    await ledger.cancel([job_id])
    await delivered(courier)
    (made,) = (await log_of(http, job_id))["deliveries"]
    assert (made["status_code"], made["error"]) == (None, "timed_out")
    assert 0.4 < made["seconds"] < 5


@pytest.mark.parametrize(
    ("reply", "error"), [(b"SSH-2.0-OpenSSH_9.9\r\n", "not_http"), (b"HTTP/1.1 2x0 OK\r\n\r\n", "not_http")]
)
async def test_what_is_no_http(
    reply: bytes, error: str, http: httpx.AsyncClient, receiver: Receiver, secret: str, ledger: Ledger, courier: Courier
) -> None:
    receiver.reply = lambda handler: handler.wfile.write(reply) and None
    job_id = await submitted(http, receiver.url())
    await ledger.cancel([job_id])
    await delivered(courier)
    (made,) = (await log_of(http, job_id))["deliveries"]
    assert (made["status_code"], made["error"]) == (None, error)


async def test_nobody_there_and_no_such_name(
    http: httpx.AsyncClient, receiver: Receiver, secret: str, ledger: Ledger, settings: Settings
) -> None:
    async def unknown(name: str, port: int) -> list[Address]:
        raise OSError("no such name")

    closed = Receiver()
    closed.close()
    nobody, nowhere = [await submitted(http, url) for url in (closed.url(), receiver.url(host="nowhere.example"))]
    await ledger.cancel([nobody, nowhere])
    courier = Courier(ledger, settings.webhook_rules, unknown)
    await delivered(courier)
    await courier.close()
    errors = [(await log_of(http, job_id))["deliveries"][0]["error"] for job_id in (nobody, nowhere)]
    assert errors == ["connection_failed", "name_unknown"]


async def test_a_proxy_of_the_environment_is_not_asked(
    http: httpx.AsyncClient,
    receiver: Receiver,
    secret: str,
    ledger: Ledger,
    courier: Courier,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    await ledger.cancel([await submitted(http, receiver.url())])
    await delivered(courier)
    assert len(receiver.told) == 1


async def test_over_tls_the_name_counts_and_the_checked_address_is_asked(
    http: httpx.AsyncClient,
    secret: str,
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, trusted = certificate(tmp_path, "hooks.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    names: list[str | None] = []
    server.sni_callback = lambda _, name, __: names.append(name)
    receiver = Receiver(server)

    async def here(name: str, port: int) -> list[Address]:
        return [ipaddress.ip_address("127.0.0.1")]

    right, wrong = [await submitted(http, receiver.url(host=f"{name}.example")) for name in ("hooks", "other")]
    await ledger.cancel([right, wrong])
    courier = Courier(ledger, WebhookRules(ports=STRICT.ports, networks=networks_of(["127.0.0.0/8"])), here)
    await delivered(courier)
    await courier.close()
    receiver.close()
    logs = [(await log_of(http, job_id))["deliveries"][0] for job_id in (right, wrong)]
    assert [(made["status_code"], made["error"]) for made in logs] == [(204, None), (None, "tls_failed")]
    assert sorted(map(str, names)) == ["hooks.example", "other.example"]
    assert [told.headers["host"] for told in receiver.told] == [f"hooks.example:{receiver.port}"]


def certificate(directory: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """A server's context with a certificate for the name, and the file by which it is trusted."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = directory / "public.pem", directory / "private.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    no_password = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context, public
