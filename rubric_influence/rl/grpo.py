"""GRPO on the rubric generator, with the influence of the pairs that its rubrics lead to as reward.

At every step the generator writes a group of rubrics for each of some documents, the teacher writes pairs from them,
the target scores the pairs by influence, and TRL's GRPOTrainer takes a step. Every rubric, pair and score is kept in
`trajectories.jsonl`. An interrupted run goes on from its last checkpoint, with the same result.

Processes that accelerate starts (rubric-influence launch) share every step: each generates its part of the rubrics,
asks its teacher and scores its part of the pairs. The main process rewards and logs the whole step.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from rubric_influence.core.config import Config
from rubric_influence.core.records import Document
from rubric_influence.core.scratch import Workplace
from rubric_influence.core.seeds import seed_rollout
from rubric_influence.engines.base import Engine, Sampling
from rubric_influence.engines.transformers_engine import TransformersEngine
from rubric_influence.models.chat import TEMPLATE_OPTIONS, Conversation, encode_prompts
from rubric_influence.models.loading import load_model, load_tokenizer
from rubric_influence.models.processes import broadcast, finish, open_state, share_batch
from rubric_influence.models.progress import show_progress
from rubric_influence.rl.guards import WatchWindows
from rubric_influence.rl.rubric_reward import RubricReward, Score
from rubric_influence.synthesis.parsing import RubricOutput
from rubric_influence.synthesis.prompts import ask_rubric
from rubric_influence.training.fine_tuning import build_lora, find_whole_checkpoint, share_arguments


def rollout_constrained(
    config: Config, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Callable[[list[Conversation], GRPOTrainer], dict]:
    """A TRL rollout function that samples rubrics under the JSON schema, for models too small to keep to it alone."""
    most, temperature = config.synthesis.max_rubric_tokens, config.rl.temperature

    def rollout(prompts: list[Conversation], trainer: GRPOTrainer) -> dict:
        model = trainer.accelerator.unwrap_model(trainer.model)
        engine = TransformersEngine(model, tokenizer, "rubric generator", batch_size=len(prompts))
        drawn = seed_rollout(seed, trainer.state.global_step, open_state().process_index)
        completions = engine.generate(prompts, Sampling(drawn, most, temperature, schema=RubricOutput))
        written = tokenizer([completion.text for completion in completions], add_special_tokens=False)["input_ids"]
        return {
            "prompt_ids": encode_prompts(tokenizer, prompts),
            "completion_ids": [[*ids, tokenizer.eos_token_id] for ids in written],
            "logprobs": None,
        }

    return rollout


def build_arguments(config: Config, seed: int, folder: str) -> GRPOConfig:
    """TRL's arguments for a profile: one optimizer step for each generation batch.

    Raises ValueError for a batch that the processes cannot share.
    """
    settings = config.rl
    batch = settings.documents_per_step * settings.group_size
    at_once, accumulated = share_batch(batch, settings.micro_batch, "documents_per_step * group_size")
    return GRPOConfig(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=accumulated,
        num_generations=settings.group_size,
        steps_per_generation=accumulated,
        ddp_find_unused_parameters=False,  # every one is used
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        temperature=settings.temperature,
        beta=settings.kl,
        chat_template_kwargs=TEMPLATE_OPTIONS,
        loss_type=settings.loss,
        scale_rewards=settings.scale_rewards,
        max_completion_length=config.synthesis.max_rubric_tokens,
        logging_steps=1,
        save_steps=settings.save_every,
        save_total_limit=1,
        vllm_server_host="127.0.0.1",  # TRL's own default listens to every network
        use_vllm=settings.vllm != "off",
        vllm_mode="server" if settings.vllm == "server" else "colocate",
        **share_arguments(seed),
    )


def train_rubric_generator(
    config: Config, documents: Sequence[Document], teacher: Engine, score: Score, seed: int, place: Workplace
) -> list[dict]:
    """Optimise the rubric generator; returns TRL's log, one row a step.

    place.out receives the generator that is kept, the last or the best by dev questions (rl.checkpoint), with rl.lora
    merged; its tokenizer; and `trajectories.jsonl` (rubric_influence.rl.trajectories). A run whose guard diverges ends
    early (rubric_influence.rl.guards), and the log says so.
    Raises ValueError if the processes cannot share a step.
    """
    return finish(lambda work: train_in(work, config, documents, teacher, score, seed), "generator", place)


def train_in(
    work: Path, config: Config, documents: Sequence[Document], teacher: Engine, score: Score, seed: int
) -> list[dict]:
    """Train to the end, or go on to it; work/generator then holds what `train_rubric_generator` delivers."""
    spec = config.models.rubric_generator
    arguments = build_arguments(config, seed, str(work / "trainer"))
    tokenizer = load_tokenizer(spec)
    work.mkdir(parents=True, exist_ok=True)
    reward = RubricReward(config, documents, teacher, score, seed, work / "trajectories.jsonl")
    last = find_whole_checkpoint(work / "trainer")
    reward.rewind(int(last.rpartition("-")[2]) if last else 0)
    # TRL's type says that prompts are texts; they are conversations, as the data set has them.
    rollout: Any = rollout_constrained(config, tokenizer, seed) if config.synthesis.constrained else None
    rows = [{"prompt": ask_rubric(config.prompts, document.text), "document_id": document.id} for document in documents]
    trainer = GRPOTrainer(
        load_model(spec),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=build_lora(config.rl.lora) if config.rl.lora else None,
        rollout_func=rollout,
    )
    if trainer.is_fsdp_enabled and config.rl.lora:
        raise ValueError("rl.lora cannot be merged where FSDP shares the weights; use DDP, or set rl.lora to null")
    trainer.add_callback(WatchWindows(reward.read_scores, broadcast(score.dev_served)))
    show_progress(trainer, f"GRPO, seed {seed}", "reward", "influence", "guard_influence", "valid")
    trainer.train(resume_from_checkpoint=last)
    model, weights = trainer.accelerator.unwrap_model(trainer.model), None
    if best := trainer.state.best_model_checkpoint:  # rl.checkpoint is dev
        kept: dict = {"step": trainer.state.best_global_step, "kept": Path(best).name}
        trainer.state.log_history.append(kept)
        adapted = (Path(best) / "adapter_config.json").is_file()  # else the checkpoint is the whole generator
        base = load_model(spec if adapted else spec.model_copy(update={"path": best, "revision": None}))
        model = PeftModel.from_pretrained(base, best) if adapted else base
    elif trainer.is_fsdp_enabled:
        weights = trainer.accelerator.get_state_dict(trainer.model)  # each process has only a part of them
    if open_state().is_main_process:
        if config.rl.lora:
            model = model.merge_and_unload()
        finished = work / "generator"
        model.save_pretrained(finished, safe_serialization=True, state_dict=weights)
        tokenizer.save_pretrained(finished)
        shutil.copy(reward.log, finished / "trajectories.jsonl")
    return trainer.state.log_history
