"""What happens: a cluster without token authentication, or a dashboard open to all (fault 25)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cvm_batch.cluster.doors import check_dashboard, check_driver_address, is_jobs_address
from cvm_batch.errors import ClusterError, ClusterUnreachableError, OpenClusterError


class Dashboard(HTTPServer):
    """Answers with one status."""

    status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Dashboard)
        assert "Authorization" not in self.headers, "the token is no use to a stranger"
        self.send_response(self.server.status)
        self.send_header("Location", "http://192.0.2.9/login")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def dashboard(request: pytest.FixtureRequest) -> Iterator[Dashboard]:
    server = Dashboard((getattr(request, "param", "127.0.0.1"), 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("status", [401, 403, 302])
def test_a_shut_door_is_passed(dashboard: Dashboard, status: int) -> None:
    dashboard.status = status
    check_dashboard(dashboard.url)


def test_without_a_token_anybody_is_let_in(dashboard: Dashboard) -> None:
    with pytest.raises(OpenClusterError, match=r"asks for no token.*--allow-open-cluster"):
        check_dashboard(dashboard.url)


@pytest.mark.parametrize("dashboard", ["0.0.0.0"], indirect=True)
def test_a_dashboard_on_all_addresses_is_refused(dashboard: Dashboard) -> None:
    dashboard.status = 401
    with pytest.raises(OpenClusterError, match="bound to all addresses"):
        # 127.0.0.2 stands for the network's: it answers, though the dashboard was to be local.
        check_dashboard(dashboard.url, own_addresses=lambda: ["127.0.0.2"])


def test_a_dashboard_on_one_address_is_passed(dashboard: Dashboard) -> None:
    dashboard.status = 401
    check_dashboard(dashboard.url, own_addresses=lambda: ["127.0.0.2"])


def test_a_token_does_not_travel_in_the_clear() -> None:
    with pytest.raises(OpenClusterError, match="without TLS"):
        check_dashboard("http://192.0.2.7:8265", knock=lambda url: 401)
    check_dashboard("https://192.0.2.7:8265", knock=lambda url: 401)


def test_something_else_is_no_cluster(dashboard: Dashboard) -> None:
    dashboard.status = 404
    with pytest.raises(ClusterError, match="404"):
        check_dashboard(dashboard.url)


def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ClusterUnreachableError, match="No answer"):
            check_dashboard(f"http://127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize("secret", ["http://me:pw@localhost:1", "https://h/?token=abc"])
def test_an_address_holds_no_secret_and_none_is_repeated(secret: str) -> None:
    with pytest.raises(ClusterError) as refused:
        check_dashboard(secret)
    assert "pw" not in str(refused.value)
    assert "abc" not in str(refused.value)


def test_a_driver_connects_with_a_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check_driver_address("10.0.0.1:6379")
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(OpenClusterError, match="RAY_AUTH_MODE"):
        check_driver_address("10.0.0.1:6379")


def test_which_addresses_are_the_jobs_apis() -> None:
    assert is_jobs_address("https://ray.lab:8265")
    assert not any(map(is_jobs_address, (None, "auto", "10.0.0.1:6379")))
