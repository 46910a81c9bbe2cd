"""A peer that counts: after the prompt's last token come the next numbers. For tests."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from bench.peers.protocol import Emit, Engine, Request, serve


class Counter:
    def __init__(self, config: dict[str, Any]) -> None:
        if config.get("broken"):
            raise ValueError("no such model")
        self.pid = os.getpid()
        self.versions = {"fake": "1.0"}
        self._config = config

    def generate(self, request: Request, emit: Emit) -> dict[str, float]:
        print("a library that talks")  # must not disturb the protocol
        if request.max_tokens == self._config.get("dies_at"):
            sys.exit(3)
        if request.max_tokens == self._config.get("fails_at"):
            raise RuntimeError("out of luck")
        step: int = self._config.get("step", 1)
        tokens = [request.tokens[-1] + 1 + i for i in range(request.max_tokens)]
        for begin in range(0, len(tokens), step):
            time.sleep(self._config.get("seconds", 0.0))
            emit(tokens[begin : begin + step])
        return {"rounds": -(-len(tokens) // step)}


def open_engine(config: dict[str, Any]) -> Engine:
    return Counter(config)


if __name__ == "__main__":
    serve(open_engine)
