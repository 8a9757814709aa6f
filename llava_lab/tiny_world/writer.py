"""Writer: an OpenAI-compatible server that stands for an LM, and writes what is true of scenes.

`python -m llava_lab.tiny_world.writer WORLD [PORT]` answers `make instruct` on this machine. It
knows a scene by the captions that it is shown, and the kind of data by the example: of which it
writes as many questions as that has, none, one or several.
"""

import json
from argparse import ArgumentParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llava_lab.tiny_world.annotations import Described
from llava_lab.tiny_world.question import ask_several
from llava_lab.tiny_world.reasoning import ask_reasoning
from llava_lab.tiny_world.text import detail

PORT = 8321
QUESTIONS = (2, 4)  # fewest and most of a conversation


class Writer(ThreadingHTTPServer):
    """The server, on this machine alone.

    Args:
        described: Pictures that it may be asked about.
        port: Its port; 0 takes a free one.
    """

    def __init__(self, described: Described, port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.described = described
        every = range(len(described.scenes))
        self.index = {"\n".join(described.captions(index)): index for index in every}

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def write(self, messages: list[dict[str, str]]) -> str:
        """What is true of the scene that messages are about.

        Raises:
            KeyError: If the scene is not known.
        """
        index = self.index[messages[-1]["content"].partition("\n\n")[0]]
        scene = self.described.scenes[index]
        examples = [each["content"] for each in messages if each["role"] == "assistant"]
        asked = examples[0].count("Question:") if examples else 0
        rng = self.described.world._rng("writer", index, min(asked, 2))
        if not asked:
            return detail(scene, rng)
        number = rng.randint(*QUESTIONS)
        questions = [ask_reasoning(scene, rng)] if asked == 1 else ask_several(scene, rng, number)
        if asked > 1 and len(questions) < QUESTIONS[0]:
            questions.append(ask_reasoning(scene, rng))
        return "\n===\n".join(
            f"Question:\n{each.text}\n===\nAnswer:\n{each.sentence}" for each in questions
        )


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Writer)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            said = self.server.write(body["messages"])
        except (KeyError, TypeError, IndexError) as problem:
            return self._send(400, {"error": {"message": f"no scene of this world: {problem}"}})
        read = sum(len(each["content"].split()) for each in body["messages"])
        usage = {"prompt_tokens": read, "completion_tokens": len(said.split())}  # words
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return self._send(200, {"choices": [choice], "usage": usage})

    def _send(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of single requests."""


if __name__ == "__main__":
    parser = ArgumentParser("python -m llava_lab.tiny_world.writer")
    parser.add_argument("world", metavar="WORLD", type=Path, help="the world's folder")
    port = f"port of this machine, by default {PORT}"
    parser.add_argument("port", metavar="PORT", type=int, nargs="?", default=PORT, help=port)
    options = parser.parse_args()
    try:
        server = Writer(Described(options.world), options.port)
    except (OSError, OverflowError, ValueError) as problem:
        parser.error(str(problem))
    print(f"llava_lab: {server.url} writes of {options.world}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
