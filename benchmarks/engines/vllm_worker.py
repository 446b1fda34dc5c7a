"""One arm of benchmarks.engines.vllm: loads its engine, then answers each line of its input by a run and a line.

    python -m benchmarks.engines.vllm_worker --arm vllm        {"tokens": 64} -> {"tokens": ..., "seconds": ...}

A run is 256 conversations at once, greedily: to a fixed number of tokens, or (null) as the pipeline does, to where the
model ends. Seconds of the clock and of the processor; the second is what counts where others use the machine.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

from transformers import GenerationConfig

from benchmarks.engines.overhead import make_documents
from rubric_influence.core.config import Config
from rubric_influence.core.profiles import load_config
from rubric_influence.engines.base import Sampling
from rubric_influence.engines.open import open_engine
from rubric_influence.models.chat import encode_prompts
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.synthesis.prompts import ask_pair

BATCH = 256


def make_conversations(config: Config) -> list[list[dict[str, str]]]:
    """What a teacher of the lab is asked: a document each, fixed rubrics in turn."""
    rubrics = config.prompts.expert_rubrics + config.prompts.privileged_rubrics
    documents = make_documents(config.corpus.field, worlds=2)[:BATCH]
    return [ask_pair(config.prompts, d.text, rubrics[i % len(rubrics)]) for i, d in enumerate(documents)]


def open_arm(arm: str, config: Config) -> Callable[[int | None], int]:
    """A function from a number of tokens (None: the model's own ends) to how many were generated."""
    spec, conversations = config.models.teacher, make_conversations(config)
    ids = encode_prompts(load_tokenizer(spec), conversations)
    if arm in ("generate", "static"):
        model, tokenizer = load_model(spec, "cpu"), load_tokenizer(spec)
        cache = {"cache_implementation": "static"} if arm == "static" else {}

        def run_plain(tokens: int) -> int:
            batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
            settings = GenerationConfig(
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=0,
                **cache,
            )
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            return model.generate(**inputs, generation_config=settings)[:, batch["input_ids"].shape[1] :].numel()

        return run_plain
    engine = open_engine(spec.model_copy(update={"engine": arm}), BATCH, "cpu")

    def run(tokens: int | None) -> int:
        if tokens is None:
            sampling = Sampling(0, config.synthesis.max_pair_tokens, temperature=0.0)
            return sum(c.completion_tokens for c in engine.generate(conversations, sampling))
        if arm != "vllm":
            raise ValueError(f"the engine {arm} ends where its model does")
        settings = engine.vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": prompt} for prompt in ids]
        return sum(len(o.outputs[0].token_ids) for o in engine.llm.generate(asked, settings, use_tqdm=False))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=["vllm", "transformers", "generate", "static"], required=True)
    arm = parser.parse_args().arm
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints
    run = open_arm(arm, load_config("params.yaml"))
    for line in sys.stdin:
        started, used = time.perf_counter(), time.process_time()
        tokens = run(json.loads(line)["tokens"])
        took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used}
        print(json.dumps({"tokens": tokens} | took), file=answers, flush=True)


if __name__ == "__main__":
    main()
