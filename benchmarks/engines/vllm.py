"""vLLM in process beside transformers' generation: same model, prompts, tokens and threads, turn about.

Each arm is a process of its own, which waits while another runs. transformers is our engine; generate and static are
model.generate with its default, growing cache and with one that is allocated at once.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec

import torch
from scipy import stats

WORKLOADS = {  # tokens of each answer (None: as the pipeline asks, to the model's own ends) -> rounds and arms
    None: (5, ("transformers", "vllm")),
    64: (5, ("generate", "static", "vllm")),
    256: (3, ("generate", "static", "vllm")),
}


def start_worker(arm: str) -> subprocess.Popen:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # all of it in this one process, whose seconds count
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.engines.vllm_worker", "--arm", arm]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment, bufsize=1
    )


def ask(worker: subprocess.Popen, tokens: int | None) -> dict:
    worker.stdin.write(json.dumps({"tokens": tokens}) + "\n")
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"{' '.join(worker.args)} ended with {worker.wait()}")
    return json.loads(line)


def average_ratio(ratios: list[float]) -> dict:
    """The geometric mean of rounds' ratios with its 95 % interval (Student's, of the logarithms)."""
    logs = [math.log(ratio) for ratio in ratios]
    mean, error = statistics.mean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    reach = stats.t.ppf(0.975, len(logs) - 1) * error
    return {"ratio": round(math.exp(mean), 3), "interval": [round(math.exp(mean + s * reach), 3) for s in (-1, 1)]}


def measure_vllm() -> dict:
    """vLLM's tokens a second over each alternative's, by the clock and by the processor's time."""
    if not find_spec("vllm"):
        raise ImportError("vllm is not installed: make setup-vllm")
    workers = {arm: start_worker(arm) for arm in ("vllm", "transformers", "generate", "static")}
    try:
        found = {}
        for tokens, (rounds, arms) in WORKLOADS.items():
            for arm in arms:
                ask(workers[arm], tokens)  # warms up
            runs = [{arm: ask(workers[arm], tokens) for arm in arms} for _ in range(rounds)]
            rates = {
                arm: {
                    kind: [run[arm]["tokens"] / run[arm][kind] for run in runs] for kind in ("seconds", "cpu_seconds")
                }
                for arm in arms
            }
            row = {"tokens": {arm: runs[0][arm]["tokens"] for arm in arms}, "rounds": rounds}
            for arm in arms:
                row[f"{arm}_tokens_a_second"] = round(statistics.median(rates[arm]["seconds"]), 1)
                if arm != "vllm":
                    for kind, name in (("seconds", "clock"), ("cpu_seconds", "processor")):
                        pairs = zip(rates["vllm"][kind], rates[arm][kind], strict=True)
                        row[f"over_{arm}_{name}"] = average_ratio([ours / theirs for ours, theirs in pairs])
            found["own_ends" if tokens is None else f"{tokens}_tokens"] = row
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return {"throughput_over_transformers": found["own_ends"]["over_transformers_clock"]["ratio"], **found}
