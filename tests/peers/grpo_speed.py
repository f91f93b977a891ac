"""Seconds and memory of a GRPO step: `thinkvg grpo` against TRL's GRPOTrainer.

Usage: python tests/peers/grpo_speed.py --program build/release/tools/thinkvg --work DIR [--setting tiny|11M|0.1B]
                                        [--steps 6] [--threads 2] [--rounds 1]

Both open the same model folder and see the same pictures, questions, group size and lengths; every completion has the
full length. Both train all weights in float32 with AdamW, loss dapo, beta 0.04 (so a reference is kept), one update a
rollout, and a reward that costs nothing to compute. Each runs in a process of its own, in turns; the first two steps
of each run are thrown away. Printed: the median seconds of a step and of its parts, and the peak resident memory. Parts
of TRL: rollout = generation, reward = reward functions, logprob = passes without gradient (the reference's), update =
the rest. Needs an idle machine to mean anything; --setting tiny only shows that it works.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time

import vlm_setup

PARTS = ["step", "rollout", "reward", "logprob", "update"]
SKIPPED = 2

# Prompts a step, completions a prompt, tokens of a prompt and of a completion.
SETTINGS = {
    "tiny": ("tiny", 1, 4, 60, 8),
    "11M": ("11M", 1, 8, 309, 128),
    "0.1B": ("0.1B", 2, 8, 256, 64),
}


def run_thinkvg(options, place, out):
    shape, prompts, group, _, length = SETTINGS[options.setting]
    shutil.rmtree(out, ignore_errors=True)
    command = [options.program, "grpo", "--model", place["model"], "--data", place["questions"], "--images",
               place["images"], "--out", out, "--prompts_per_step", prompts, "--group_size", group,
               "--sampling.max_new_tokens", length, "--rewards", "repetition=1", "--watch_every", 0,
               "--samples_per_step", 0, "--run.steps", options.steps, "--run.num_threads", options.threads,
               "--run.tensorboard", "false"]
    subprocess.run([str(part) for part in command], check=True, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(out)
    names = {"step": "step_time"} | {part: f"step_time/{part}" for part in PARTS[1:]}
    times = {part: [line[name] for line in lines[SKIPPED:]] for part, name in names.items()}
    lengths = {line["completions/mean_length"] for line in lines}
    # A step's tokens are its prompts, once each, and its completions.
    prompt_tokens = statistics.mean((line["num_tokens"] - prompts * group * length) / prompts for line in lines)
    return {"times": times, "peak_memory": max(line["peak_memory"] for line in lines), "lengths": sorted(lengths),
            "prompt_tokens": prompt_tokens}


def run_trl(options, place, out):
    command = [sys.executable, __file__, "--peer", json.dumps({k: str(v) for k, v in place.items()}), "--setting",
               options.setting, "--steps", str(options.steps), "--threads", str(options.threads), "--work", str(out),
               "--program", options.program]
    done = subprocess.run(command, check=True, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": str(options.threads)})
    return json.loads(done.stdout.splitlines()[-1])


def peer(options):
    import torch
    from datasets import Dataset, Features, Value
    from datasets import Image as Picture
    from PIL import Image
    from transformers import Qwen2_5_VLForConditionalGeneration, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(options.threads)
    place = json.loads(options.peer)
    _, prompts, group, _, length = SETTINGS[options.setting]
    processor = vlm_setup.make_processor(place["model"], int(place["image_size"]))
    rows = [json.loads(line) for line in pathlib.Path(place["questions"]).read_text().splitlines()]
    message = {"role": Value("string"), "content": Value("string")}
    data = Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": row["question"]}] for row in rows],
         "image": [Image.open(pathlib.Path(place["images"]) / row["image"]).convert("RGB") for row in rows]},
        features=Features({"prompt": [message], "image": Picture()}))

    def distinct_ids(completion_ids, **_):
        return [len(set(ids)) / len(ids) for ids in completion_ids]

    times = {part: [] for part in PARTS}
    now = dict.fromkeys(PARTS, 0.0)
    lengths = set()

    class Timed(GRPOTrainer):
        def timed(self, part, call, *args, **kwargs):
            start = time.perf_counter()
            result = call(*args, **kwargs)
            now[part] += time.perf_counter() - start
            return result

        prompt_lengths = []

        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            result = self.timed("rollout", super()._generate_single_turn, prompt_ids, *args, **kwargs)
            self.prompt_lengths += [len(ids) for ids in prompt_ids]
            lengths.update(len(ids) for ids in result[0])
            return result

        def _calculate_rewards(self, *args, **kwargs):
            return self.timed("reward", super()._calculate_rewards, *args, **kwargs)

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            if torch.is_grad_enabled():
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)
            return self.timed("logprob", super()._get_per_token_logps_and_entropies, *args, **kwargs)

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = self.start if hasattr(self, "start") else time.perf_counter()

        def on_step_end(self, *_, **__):
            end = time.perf_counter()
            now["step"] = end - self.start
            self.start = end
            now["update"] = now["step"] - now["rollout"] - now["reward"] - now["logprob"]
            for part in PARTS:
                times[part].append(now[part])
                now[part] = 0.0

    config = GRPOConfig(
        output_dir=options.work, per_device_train_batch_size=prompts * group, num_generations=group,
        max_steps=options.steps, max_completion_length=length, generation_kwargs={"min_new_tokens": length},
        temperature=1.0, beta=0.04, loss_type="dapo", epsilon=0.2, epsilon_high=0.28, learning_rate=1e-6,
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no", logging_steps=1000,
        disable_tqdm=True)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(place["model"], dtype=torch.float32)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    trainer = Timed(model, distinct_ids, args=config, train_dataset=data, processing_class=processor,
                    callbacks=[Clock()])
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens = trainer.prompt_lengths
    print(json.dumps({"prompt_tokens": sum(tokens) / len(tokens),
                      "times": {part: values[SKIPPED:] for part, values in times.items()}, "peak_memory": peak,
                      "lengths": sorted(lengths), "parameters": num_parameters}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="11M")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(options)
    if options.steps <= SKIPPED:
        sys.exit(f"--steps must be above {SKIPPED}")
    shape, prompts, group, prompt_tokens, length = SETTINGS[options.setting]
    place = vlm_setup.make_workplace(options.program, options.work / re.sub(r"\W", "_", options.setting), shape,
                                     max(32, prompts * options.steps), prompt_tokens)
    sides = {"thinkvg": run_thinkvg, "TRL": run_trl}
    results = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, run in sides.items():
            results[name].append(run(options, place, options.work / "run"))
    table = {}
    for name, runs in results.items():
        table[name] = {part: statistics.median(t for run in runs for t in run["times"][part]) for part in PARTS}
        table[name]["peak_memory"] = max(run["peak_memory"] for run in runs)
        table[name]["lengths"] = runs[0]["lengths"]
        table[name]["prompt_tokens"] = runs[0]["prompt_tokens"]
    table["ratio"] = {key: table["TRL"][key] / max(table["thinkvg"][key], 1e-9) for key in [*PARTS, "peak_memory"]}
    table["setting"] = {"prompts": prompts, "group_size": group, "completion_tokens": length, "parameters": results["TRL"][0]["parameters"],
                        "threads": options.threads}
    if options.json:
        return print(json.dumps(table))
    setting = table["setting"]
    print(f"{setting['parameters'] / 1e6:.1f}M parameters, {prompts} x {group}, {options.threads} threads; tokens " +
          ", ".join(f"{name} {table[name]['prompt_tokens']:.0f} + {table[name]['lengths']}" for name in sides))
    print(f"{'':12}" + "".join(f"{part:>10}" for part in PARTS) + f"{'memory':>12}")
    for name in sides:
        row = table[name]
        print(f"{name:12}" + "".join(f"{row[part]:10.3f}" for part in PARTS) + f"{row['peak_memory'] / 1e6:9.0f} MB")
    print(f"{'times':12}" + "".join(f"{table['ratio'][part]:10.1f}" for part in PARTS) +
          f"{table['ratio']['peak_memory']:12.2f}")


if __name__ == "__main__":
    main()
