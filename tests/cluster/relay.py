"""A relay before a dashboard: with TLS, as a laboratory's proxy; or cut, as a bad line."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trustme

Result = TypeVar("Result")
_CHUNK = 1 << 16


class Relay:
    """Listens on 127.0.0.1 and hands every connection on to ``port`` there."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.connections = 0
        self._to, self._tls = port, tls
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.restore()

    @classmethod
    def with_tls(cls, port: int, ca_file: Path) -> Relay:
        """``ca_file`` gets the certificate of the authority that vouches for this relay."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(ca_file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        return cls(port, context)

    def restore(self) -> None:
        """Listen (again), on the same port as before."""
        self._wait_for(self._listen())

    def cut(self) -> None:
        """Drop every connection and refuse new ones, until `restore`."""
        self._wait_for(self._drop())

    def _wait_for(self, coroutine: Coroutine[None, None, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _drop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._to)
        both = {writer, inner_writer}
        self._open |= both
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        self._open -= both


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
    sink.close()
