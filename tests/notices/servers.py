"""Servers that notices are sent to: they take them, refuse them, hang, or talk nonsense."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class WebServer:
    url: str = ""
    answers: list[int] = field(default_factory=list)
    """Status codes in turn; the last one stays. None: 200."""
    location: str | None = None
    posted: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def web_server(*answers: int, location: str | None = None) -> Iterator[WebServer]:
    found = WebServer(answers=list(answers), location=location)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.posted.append(json.loads(body))
            found.headers.append(dict(self.headers))
            answers = found.answers or [200]
            code = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(code, "said " + self.path)
            if found.location:
                self.send_header("Location", found.location)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/hook/SECRET-TOKEN"
        with _serving(server):
            yield found


@dataclass
class SmtpServer:
    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    sessions: int = 0


@contextmanager
def smtp_server(
    *,
    refuse: dict[str, str] | None = None,
    refuse_times: int = 10**9,
    tls: Path | None = None,
    auth: bool = False,
) -> Iterator[SmtpServer]:
    """Answers as RFC 5321 has it; ``refuse`` says what a command gets instead, as often as
    ``refuse_times``. ``tls``: a file with key and certificate, for STARTTLS."""
    found = SmtpServer()
    refused = dict(refuse or {})
    left = [refuse_times]

    class Handler(socketserver.StreamRequestHandler):
        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

        def handle(self) -> None:
            found.sessions += 1
            recipients: list[str] = []
            self.say("220 lab ready")
            while line := self.rfile.readline().decode().strip():
                verb = line.split(":")[0].split()[0].upper()
                if verb in refused and left[0]:
                    left[0] -= 1
                    self.say(refused[verb])
                elif verb == "EHLO":
                    self.say("250-lab")
                    if tls and not isinstance(self.request, ssl.SSLSocket):
                        self.say("250-STARTTLS")
                    if auth:
                        self.say("250-AUTH PLAIN")
                    self.say("250 SIZE 1000000")
                elif verb == "STARTTLS" and tls:
                    self.say("220 go ahead")
                    self.start_tls(tls)
                elif verb == "AUTH":
                    found.logins.append(line)
                    self.say("235 welcome")
                elif verb == "RCPT":
                    recipients.append(line.split("<")[1].split(">")[0])
                    self.say("250 ok")
                elif verb == "DATA":
                    self.say("354 go on")
                    data = b""
                    while (line_of := self.rfile.readline()) != b".\r\n":
                        data += line_of.removeprefix(b".")
                    found.mails.append(message_from_bytes(data, policy=policy.default))
                    found.recipients.append(recipients)
                    self.say("250 taken")
                elif verb == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 ok")

        def start_tls(self, pem: Path) -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            self.request = context.wrap_socket(self.request, server_side=True)
            self.rfile = self.request.makefile("rb")
            self.wfile = self.request.makefile("wb", buffering=0)

    with _ThreadingServer(("127.0.0.1", 0), Handler) as server:
        found.port = server.server_address[1]
        with _serving(server):
            yield found


@contextmanager
def hanging_server(*, drip: bytes = b"") -> Iterator[int]:
    """Accepts everybody and never ends its answer: nothing at all, or ``drip`` again and again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()
        held: list[socket.socket] = []

        def accept() -> None:
            server.settimeout(0.05)
            while not stop.is_set():
                with suppress(TimeoutError):
                    held.append(server.accept()[0])
                for each in held if drip else ():
                    with suppress(OSError):
                        each.sendall(drip)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            thread.join()
            for each in held:
                each.close()


def free_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def write_certificate(path: Path) -> Path:
    """Key and certificate for localhost in one file."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    key, certificate = path.with_suffix(".key"), path.with_suffix(".crt")
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(key.read_bytes() + certificate.read_bytes())
    return path


class _ThreadingServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
