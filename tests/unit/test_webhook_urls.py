"""Which URLs may be named for webhooks, and which addresses may be asked."""

import base64
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfunq.environment import read_settings
from pyfunq.errors import InvalidInput, NotConfigured
from pyfunq.settings import Settings
from pyfunq.webhook_urls import Target, WebhookRules, networks_of, ports_of
from pyfunq.webhooks import PAUSES_SECONDS, new_secret, pause_after

RULES = WebhookRules()
HTTP = WebhookRules(allow_http=True)

NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "192.88.99.1",
    "2001:10::1",
    "3fff::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused_in_every_form(text: str) -> None:
    assert not RULES.permits(ipaddress.ip_address(text))
    host = f"[{text}]" if ":" in text else text
    with pytest.raises(InvalidInput, match="public address"):
        RULES.target(f"https://{host}/")


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_a_public_address_is_not(text: str) -> None:
    assert RULES.permits(ipaddress.ip_address(text))


@given(st.ip_addresses(v=4))
def test_what_an_ipv6_address_stands_for_counts(address: ipaddress.IPv4Address) -> None:
    allowed = RULES.permits(address)
    for prefix in (0xFFFF << 32, int(ipaddress.IPv6Address("64:ff9b::"))):
        assert RULES.permits(ipaddress.IPv6Address(prefix | int(address))) == allowed
    if allowed:
        assert address.is_global
        assert not address.is_multicast


@pytest.mark.parametrize(
    "host",
    ["0x7f.1", "0x7f000001", "2130706433", "017700000001", "127.1", "0177.0.0.1", "0", "localhost", "A.LocalHost"],
)
def test_other_ways_to_write_loopback_are_refused(host: str) -> None:
    with pytest.raises(InvalidInput, match="public address"):
        RULES.target(f"https://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example",
        "//hooks.example/",
        "http://hooks.example/",
        "ftp://hooks.example/",
        "file:///etc/passwd",
        "gopher://hooks.example/",
        "https://",
        "https:///path",
        "https://user@hooks.example/",
        "https://user:opensesame@hooks.example/",
        "https://@hooks.example/",
        "https://hooks.example/#part",
        "https://hooks.example:22/",
        "https://hooks.example:6379/",
        "https://hooks.example:0/",
        "https://hooks.example:/",
        "https://hooks.example:99999/",
        "https://hooks.example:x/",
        "https://hooks.example\\@127.0.0.1/",
        "https://hooks.example/a b",
        "https://hooks.example/\r\nX-Other: 1",
        "https://hooks.example/\x00",
        "https://hooks..example/",
        "https://hooks.example./",
        "https://-hooks.example/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://[8.8.8.8]/",
        "https://1.2.3.4.5/",
        "https://256.1.1.1/",
        "https://hooks.0x/",
        "https://höoks.example/",
        "https://⑯⑨.254.169.254/",
        f"https://hooks.example/{'x' * 2000}",
    ],
)
def test_what_is_no_plain_https_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        RULES.target(url)
    assert refused.value.field == "webhook"
    assert not any(part in refused.value.message for part in ("hooks", "sesame", "etc", "169"))


def test_a_url_comes_apart_as_it_is_asked() -> None:
    assert RULES.target("https://Hooks.Example/in?a=1&b=%20") == Target("https", "hooks.example", 443, "/in?a=1&b=%20")
    assert RULES.target("https://hooks.example").path == "/"
    assert RULES.target("https://hooks.example?x").path == "/?x"
    assert RULES.target("https://hooks.example:8443/").authority == "hooks.example:8443"
    assert RULES.target("https://hooks.example:443/").authority == "hooks.example"
    assert HTTP.target("http://hooks.example/").authority == "hooks.example"
    assert RULES.target("https://[2606:4700:0::1111]:9000/").authority == "[2606:4700::1111]:9000"
    assert RULES.target("https://8.8.2056/").host == "8.8.8.8"


@given(st.text(max_size=60))
def test_nothing_else_is_raised(text: str) -> None:
    for url in (text, f"https://{text}", f"https://hooks.example{text}"):
        try:
            target = RULES.target(url)
        except InvalidInput:
            continue
        assert target.scheme == "https"
        assert target.path.isascii()


def test_networks_that_the_operator_names() -> None:
    rules = WebhookRules(networks=networks_of(["10.1.0.0/16", "fd00:1::/32"]))
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5"):
        assert rules.permits(ipaddress.ip_address(text))
    for text in ("10.2.0.1", "127.0.0.1", "fd00:2::5"):
        assert not rules.permits(ipaddress.ip_address(text))
    assert rules.target("https://10.1.2.3/").host == "10.1.2.3"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("webhook_ports", value) for value in ("x", "9000-8000", "0", "70000", "-1")),
        *(("webhook_networks", value) for value in ("x", "10.0.0.1/8", "hooks.example")),
    ],
)
def test_settings_that_cannot_be_used(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PYFUNQ_{name.upper()}", value)
    with pytest.raises(NotConfigured, match=f"PYFUNQ_{name.upper()}"):
        read_settings()


def test_settings_make_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFUNQ_WEBHOOK_PORTS", "443, 8000-8002")
    monkeypatch.setenv("PYFUNQ_WEBHOOK_NETWORKS", "10.1.0.0/16")
    monkeypatch.setenv("PYFUNQ_WEBHOOK_ALLOW_HTTP", "true")
    rules = Settings().webhook_rules
    assert rules == WebhookRules(True, ports_of(["443", "8000-8002"]), networks_of(["10.1.0.0/16"]))


def test_secrets_are_whsec_and_32_random_bytes() -> None:
    one, other = new_secret(), new_secret()
    assert one != other
    assert len(base64.b64decode(one.removeprefix("whsec_"), validate=True)) == 32


def test_pauses_grow_to_about_three_days() -> None:
    pauses = [pause_after(attempt) for attempt in range(1, len(PAUSES_SECONDS) + 1)]
    assert all(p is not None and wanted <= p <= 1.1 * wanted for p, wanted in zip(pauses, PAUSES_SECONDS, strict=True))
    assert list(PAUSES_SECONDS) == sorted(PAUSES_SECONDS)
    assert 2.5 * 86_400 < sum(PAUSES_SECONDS) < 3.5 * 86_400
    assert pause_after(len(PAUSES_SECONDS) + 1) is None
