"""Messages between a worker and a child: bytes, and file descriptors that come with them."""

from __future__ import annotations

import array
import socket
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

#: Sizes of facts and data, number of descriptors.
_HEAD = struct.Struct("<IQI")
#: Most descriptors in a message: Linux takes 253.
MOST_FDS = 250
#: Bytes that are read at once, so that most messages take one call.
_READ = 1 << 15


class Message(NamedTuple):
    """What is sent at once."""

    #: A pickle of our own facts.
    facts: memoryview
    #: A pickle of users' objects.
    data: memoryview
    fds: list[int]


class Channel:
    """One end of a stream socket; any thread may send, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._sending = threading.Lock()
        self._data = b""
        self._fds: list[int] = []

    def send(self, facts: bytes, data: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message; the receiver gets duplicates of the descriptors."""
        head = _HEAD.pack(len(facts), len(data), len(fds))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with self._sending:
            sent = self.sock.sendmsg([head, facts, data], rights)
            # A large message may take more than one call.
            for part in (head, facts, data):
                if sent < len(part):
                    self.sock.sendall(memoryview(part)[sent:])
                sent = max(0, sent - len(part))

    def receive(self) -> Message:
        """Wait for a message; raise EOFError if the other end is closed."""
        while len(self._data) < _HEAD.size:
            self._read()
        facts, data, count = _HEAD.unpack_from(self._data)
        size = _HEAD.size + facts + data
        if len(self._data) >= size:
            body = memoryview(self._data)
            self._data = self._data[size:]
        else:
            body = memoryview(bytearray(size))
            read = len(self._data)
            body[:read] = self._data
            self._data = b""
            while read < size:
                # It ends with this message, so no descriptors of the next one are lost.
                more = self.sock.recv_into(body[read:])
                if not more:
                    raise EOFError
                read += more
        fds, self._fds = self._fds[:count], self._fds[count:]
        start = _HEAD.size + facts
        return Message(body[_HEAD.size : start], body[start:size], fds)

    @property
    def buffered(self) -> bool:
        """Whether a message, or a part of one, was read along with the one before."""
        return bool(self._data)

    def fileno(self) -> int:
        """Return the descriptor of this end."""
        return self.sock.fileno()

    def close(self) -> None:
        """Close this end."""
        self.sock.close()

    def _read(self) -> None:
        room = socket.CMSG_LEN(4 * MOST_FDS)
        data, rights, _, _ = self.sock.recvmsg(_READ, room, socket.MSG_CMSG_CLOEXEC)
        for _, _, content in rights:
            fds = array.array("i")
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            self._fds.extend(fds)
        if not data:
            raise EOFError
        self._data += data
