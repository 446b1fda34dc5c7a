"""A server that answers chat completions a fixed time after they were asked: what two load generators share.

python -m benchmarks.engines.server --seconds 0.1      prints its port

A model called "rubrics" gets a rubric, every other a pair, always the same.
"""

import argparse
import asyncio
import json

RUBRIC = {"rubric": "ask a short answer question about the dose"}
PAIR = {"question": "what is the dose of velomab ?", "answer": "5 mg"}


def write_response(content: dict) -> bytes:
    answer = {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": json.dumps(content)}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320},
    }
    body = json.dumps(answer).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


RUBRIC_RESPONSE, PAIR_RESPONSE = write_response(RUBRIC), write_response(PAIR)


class Service(asyncio.Protocol):
    seconds: float

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self.received) < end + 4 + length:
                return
            body, self.received = self.received[end + 4 : end + 4 + length], self.received[end + 4 + length :]
            response = RUBRIC_RESPONSE if b'"rubrics"' in body else PAIR_RESPONSE
            asyncio.get_running_loop().call_later(self.seconds, self.transport.write, response)


async def serve(seconds: float) -> None:
    Service.seconds = seconds
    server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    asyncio.run(serve(parser.parse_args().seconds))
