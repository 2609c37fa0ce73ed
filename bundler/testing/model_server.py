"""A model server for tests: OpenAI routes, deterministic answers, as slow as asked. No model.

    python -m bundler.testing.model_server --port 0 [--delay-ms 5] [--context-tokens 1024]

It answers a grounded question with the first sentence of passage 1 and cites it, anything else
with an echo. What it is asked to say can be set: a question holding `SAY(...)` is answered with
what is in the brackets; `SLOW` makes 400 words at the set delay; `LATE` makes a whole answer take
ten seconds; `CRASH` ends the process.
`/slots` tells how many answers are being made, so that a test can see a slot being freed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PASSAGE = re.compile(r"^\[1\] .*?: (.*?[.!?])(?:\s|$)", re.MULTILINE)
_SAY = re.compile(r"SAY\((.*)\)", re.DOTALL)
EMBEDDING_SIZE = 16
LATE_SECONDS = 10.0


def answer_to(messages: list[dict[str, str]]) -> str:
    """Return what the fake model says; the same for the same messages."""
    last = messages[-1]["content"] if messages else ""
    question = last.rsplit("Question: ", 1)[-1]
    if said := _SAY.search(question):
        return said[1]
    if "SLOW" in question:
        return " ".join(f"word{n}" for n in range(400))
    if passage := _PASSAGE.search(last):
        return f"{passage[1]} [1]"
    return f"You said: {question}"


def pieces_of(text: str) -> list[str]:
    """Cut a text into what is streamed at a time: about a word."""
    return re.findall(r"\S+\s*|\s+", text)


def embed(text: str) -> list[float]:
    """Return a unit vector that depends on the text alone."""
    digest = hashlib.sha256(text.encode()).digest()[:EMBEDDING_SIZE]
    vector = [byte - 127.5 for byte in digest]
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


class FakeModelServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1; `active` counts the answers being made right now."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int = 0, *, key: str = "", delay_seconds: float = 0.0) -> None:
        self.key = key
        self.delay_seconds = delay_seconds
        self.active = 0
        self.most_active = 0
        self.requests: list[dict[str, Any]] = []
        self.guard = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is what we are here to test; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: FakeModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: tests read the station's output."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._json(200, {"status": "ok", "device": "CPU"})
        elif not self._allowed():
            self._error(401, "invalid key")
        elif self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})
        elif self.path == "/slots":
            self._json(200, {"active": self.server.active, "most": self.server.most_active})
        else:
            self._error(404, "no such route")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        if not self._allowed():
            self._error(401, "invalid key")
            return
        self.server.requests.append(body)
        routes = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embeddings,
            "/tokenize": self._tokenize,
        }
        if self.path not in routes:
            self._error(404, "no such route")
            return
        with self.server.guard:
            self.server.active += 1
            self.server.most_active = max(self.server.most_active, self.server.active)
        try:
            routes[self.path](body)
        finally:
            with self.server.guard:
                self.server.active -= 1

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.key}"

    def _chat(self, body: dict[str, Any]) -> None:
        messages = body.get("messages", [])
        if messages and "CRASH" in messages[-1]["content"]:
            os._exit(3)
        text = answer_to(messages)
        head = {"id": "chatcmpl-fake", "created": 0, "model": "/some/path/model.gguf"}
        usage = {"prompt_tokens": 1, "completion_tokens": len(pieces_of(text)), "total_tokens": 2}
        if not body.get("stream"):
            time.sleep(LATE_SECONDS if "LATE" in text else self.server.delay_seconds)
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._json(
                200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            )
            return
        head["object"] = "chat.completion.chunk"
        self._stream(
            {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}
            for delta, end in [
                *(({"content": piece}, None) for piece in pieces_of(text)), ({}, "stop"),
            ]
        )  # fmt: skip

    def _completion(self, body: dict[str, Any]) -> None:
        text = f" and so on after {str(body.get('prompt', ''))[-40:]}"
        head = {"id": "cmpl-fake", "object": "text_completion", "created": 0, "model": "fake"}
        if body.get("stream"):
            self._stream(
                {**head, "choices": [{"index": 0, "text": piece, "finish_reason": None}]}
                for piece in pieces_of(text)
            )
            return
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        self._json(200, {**head, "choices": [choice]})

    def _embeddings(self, body: dict[str, Any]) -> None:
        given = body.get("input", [])
        texts = [given] if isinstance(given, str) else given
        data = [
            {"object": "embedding", "index": n, "embedding": embed(str(text))}
            for n, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        self._json(200, {"object": "list", "data": data, "model": "fake", "usage": usage})

    def _tokenize(self, body: dict[str, Any]) -> None:
        self._json(200, {"tokens": list(range(len(str(body.get("content", ""))) // 4 + 1))})

    def _stream(self, events: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for event in events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.flush()
            time.sleep(self.server.delay_seconds)
        self.wfile.write(b"data: [DONE]\n\n")

    def _json(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, message: str) -> None:
        kind = "invalid_request_error"
        self._json(status, {"error": {"message": message, "type": kind, "code": status}})


def main() -> None:
    """Serve until ended; the key comes from `BUNDLER_MODEL_KEY`."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    options, _ = parser.parse_known_args()
    server = FakeModelServer(
        options.port,
        key=os.environ.get("BUNDLER_MODEL_KEY", ""),
        delay_seconds=options.delay_ms / 1000,
    )
    server.serve_forever()


if __name__ == "__main__":
    main()
