"""Speaks as llama.cpp's server does, as far as its worker listens. For tests."""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = {"/health": {"status": "ok"}, "/props": {"build_info": "b1-fake"}}
        self._send(json.dumps(answers[self.path]).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/completion"
        assert asked["stream"]
        assert asked["return_tokens"]
        assert not asked["cache_prompt"]
        tokens = [asked["prompt"][-1] + 1 + i for i in range(asked["n_predict"])]
        events: list[dict[str, Any]] = [
            {"content": "x", "tokens": [token], "stop": False} for token in tokens if token != 7
        ]
        end = {"tokens": [], "stop": True, "tokens_predicted": len(tokens)}
        events.append({**end, "timings": {"predicted_ms": 4, "kind": "text"}})
        self._send("".join(f"data: {json.dumps(event)}\n\n" for event in events).encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Path(__file__).with_name("arguments.json").write_text(json.dumps(sys.argv), encoding="utf-8")
    port = int(sys.argv[sys.argv.index("--port") + 1])
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()
