"""A small OpenAI client on asyncio that shows when each piece came, and that can leave or dawdle in the middle."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

Json = dict[str, Any]


class BrokenAnswerError(Exception):
    """The connection ended, or what came is no HTTP, before the answer was complete."""


@dataclass
class Head:
    status: int
    headers: dict[str, str]


@dataclass
class Answer:
    """What one request got. `error`: why it is not a complete answer with status 200."""

    status: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    first_s: float = 0.0  # to the first token
    total_s: float = 0.0

    @property
    def complete(self) -> bool:
        return self.status == 200 and not self.error and self.finish != ""

    def same(self, other: "Answer") -> bool:
        """Token by token, and the log-probability of each."""
        return self.tokens == other.tokens and self.logprobs == other.logprobs and self.text == other.text


class Connection:
    """One request on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @staticmethod
    async def send(url: str, method: str, body: bytes, headers: dict[str, str] | None = None) -> "Connection":
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        return Connection(reader, writer)

    async def head(self) -> Head:
        try:
            raw = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise BrokenAnswerError("closed before the head") from error
        lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines[1:] if ":" in line)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        return Head(int(lines[0].split(" ")[1]), headers)

    async def pieces(self, head: Head) -> AsyncIterator[bytes]:
        """The body as it comes, without its framing."""
        try:
            if head.headers.get("transfer-encoding") == "chunked":
                while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    yield await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
            elif "content-length" in head.headers:
                yield await self.reader.readexactly(int(head.headers["content-length"]))
            else:
                yield await self.reader.read()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            raise BrokenAnswerError("closed in the middle of the answer") from error

    def leave(self) -> None:
        """At once, as a client that is killed does."""
        self.writer.transport.abort()


async def fetch(url: str, method: str = "GET", body: bytes = b"", limit_s: float = 30.0) -> tuple[int, str]:
    """Status and body of one small request; raises OSError, TimeoutError or BrokenAnswerError."""

    async def run() -> tuple[int, str]:
        connection = await Connection.send(url, method, body)
        try:
            head = await connection.head()
            text = b"".join([piece async for piece in connection.pieces(head)])
        finally:
            connection.leave()
        return head.status, text.decode()

    return await asyncio.wait_for(run(), limit_s)


def take_choice(answer: Answer, choice: Json) -> None:
    """Adds what one choice of a response or event says."""
    answer.tokens += choice.get("token_ids") or []
    logprobs = choice.get("logprobs") or {}
    answer.logprobs += logprobs.get("token_logprobs") or [item["logprob"] for item in logprobs.get("content") or []]
    message = choice.get("message") or choice.get("delta") or {}
    answer.text += choice.get("text") or message.get("content") or ""
    answer.finish = choice.get("finish_reason") or answer.finish


def take_message(answer: Answer, message: Json) -> None:
    """Adds a response, or one event of a streamed one."""
    if "error" in message:
        answer.error = str(message["error"].get("message"))
        return
    for choice in message.get("choices") or []:
        take_choice(answer, choice)
    if message.get("usage"):
        answer.prompt_tokens = message["usage"]["prompt_tokens"]


@dataclass
class Manners:
    """How a client behaves."""

    leave_after_s: float | None = None  # goes away whatever it has
    pause_s: float = 0.0  # between two reads


async def read_events(connection: Connection, head: Head, answer: Answer, began: float, pause_s: float) -> None:
    pending, done = b"", False
    async for piece in connection.pieces(head):
        *events, pending = (pending + piece).split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            done = done or data == b"[DONE]"
            if data == b"[DONE]":
                continue
            take_message(answer, json.loads(data))
            answer.first_s = answer.first_s or time.monotonic() - began
        if pause_s:
            await asyncio.sleep(pause_s)
    if not done and not answer.error:
        answer.error = "the stream ended without [DONE]"


async def ask(base: str, path: str, body: Json, manners: Manners | None = None) -> Answer:
    """One request to the end of its answer. Never raises for what servers and networks do."""
    manners = manners or Manners()
    answer, began = Answer(), time.monotonic()
    try:
        await asyncio.wait_for(ask_into(answer, base + path, body, manners, began), manners.leave_after_s)
    except TimeoutError:
        answer.error = "left"
    except BrokenAnswerError as error:
        answer.error = str(error)
    except OSError as error:
        answer.error = f"no connection: {error}"
    answer.total_s = time.monotonic() - began
    return answer


async def ask_into(answer: Answer, url: str, body: Json, manners: Manners, began: float) -> None:
    connection = await Connection.send(url, "POST", json.dumps(body).encode())
    try:
        head = await connection.head()
        answer.status, answer.headers = head.status, head.headers
        if head.headers.get("content-type", "").startswith("text/event-stream"):
            await read_events(connection, head, answer, began, manners.pause_s)
        else:
            text = b"".join([piece async for piece in connection.pieces(head)])
            take_message(answer, json.loads(text))
            answer.first_s = time.monotonic() - began
    finally:
        connection.leave()
