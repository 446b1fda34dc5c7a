"""Serve a GGUF file on this machine alone, as an OpenAI-compatible endpoint. Needs `pip install xllamacpp`.

python examples/serve_gguf.py MODEL.gguf --port 8102
"""

import argparse
import os
import signal

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8102)
    parser.add_argument("--slots", type=int, default=4, help="requests that are answered at once")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a request and its answer")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    settings = xllamacpp.CommonParams()
    settings.model.path = arguments.model
    settings.hostnames, settings.port = ["127.0.0.1"], arguments.port
    settings.n_parallel, settings.n_ctx = arguments.slots, arguments.slots * arguments.context
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = arguments.threads
    settings.sampling.top_k, settings.sampling.min_p = 0, 0.0  # requests say how to sample: no cuts of llama.cpp's own
    settings.ui = False
    server = xllamacpp.Server(settings)
    print("listening at", server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
