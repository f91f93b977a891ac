"""Writes the reference state of tests/rl/policy_loss_test.cc: losses and gradients of TRL's GRPOTrainer, in double.

TRL's own `_compute_loss` runs, on given log-probabilities in place of a model's. Each case holds the completions'
token log-probabilities end to end, the options under TRL's names, the step's loss (the sum over its micro-batches) and
its gradient with respect to the policy's log-probabilities; where TRL logs them, the token means of KL and clipping.

Usage: python tests/parity/write_policy_loss.py [--out tests/data/policy_loss/golden.json]
"""

import argparse
import collections
import inspect
import json
import math
import pathlib
import textwrap
import types

import numpy as np
import torch
import trl
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

# TRL makes some of its constants in torch's default type.
torch.set_default_dtype(torch.float64)

DEFAULTS = {
    "loss_type": "dapo",
    "importance_sampling_level": "token",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "delta": None,
    "beta": 0.0,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "max_completion_length": 4,
    "micro_batches": 1,
    "bias_corrected_kl": False,
    "entropy_coef": 0.0,
    "top_entropy_quantile": 1.0,
    "off_policy_threshold": None,
    "rollout_correction": "none",
    "correction_min": 0.0,
    "correction_max": 3.0,
}


def stub_trainer(options: dict, log_probs: torch.Tensor, entropies: torch.Tensor) -> types.SimpleNamespace:
    """What `_compute_loss` reads of its trainer, on one rank."""
    accelerator = types.SimpleNamespace(
        num_processes=1, reduce=lambda value, reduction: value, gather=lambda value: value, sync_gradients=False,
        pad_across_processes=lambda value, dim, pad_index: value)
    args = types.SimpleNamespace(
        delta=options["delta"], use_bias_correction_kl=options["bias_corrected_kl"], steps_per_generation=options["micro_batches"],
        sapo_temperature_pos=options["sapo_temperature_pos"], sapo_temperature_neg=options["sapo_temperature_neg"])
    trainer = types.SimpleNamespace(
        accelerator=accelerator, args=args, model=types.SimpleNamespace(training=True),
        _metrics={"train": collections.defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, entropies, None),
        current_gradient_accumulation_steps=options["micro_batches"],
        loss_type=options["loss_type"], importance_sampling_level=options["importance_sampling_level"],
        epsilon_low=options["epsilon_low"], epsilon_high=options["epsilon_high"], beta=options["beta"],
        max_completion_length=options["max_completion_length"], use_vllm=options["rollout_correction"] != "none",
        vllm_importance_sampling_correction=True, off_policy_mask_threshold=options["off_policy_threshold"],
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask, top_entropy_quantile=options["top_entropy_quantile"],
        aux_loss_enabled=False, _entropy_bonus_enabled=options["entropy_coef"] != 0, use_adaptive_entropy=False,
        entropy_coef=options["entropy_coef"])
    trainer.get_high_entropy_mask = types.MethodType(GRPOTrainer.get_high_entropy_mask, trainer)
    return trainer


def lines_between(first: str, last: str) -> str:
    """The lines of TRL's _generate_and_score_completions from the one that holds `first` to the one with `last`."""
    lines = inspect.getsource(GRPOTrainer._generate_and_score_completions).splitlines()
    begin = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines) if i >= begin and last in line)
    return textwrap.dedent("\n".join(lines[begin:end + 1]))


def correction_weights(options: dict, old: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """TRL's vllm_importance_sampling_ratio."""
    source = lines_between("per_token_logps_diff = (old_per_token_logps", "Unknown vLLM importance sampling level")
    source += "\n    )"
    trainer = types.SimpleNamespace(vllm_importance_sampling_mode=options["rollout_correction"],
                                    vllm_importance_sampling_clip_min=options["correction_min"],
                                    vllm_importance_sampling_clip_max=options["correction_max"])
    names = {"self": trainer, "old_per_token_logps": old, "sampling_per_token_logps": rollout, "mask": mask,
             "torch": torch, "math": math}
    exec(source, names)  # noqa: S102 - TRL's own lines
    return names["vllm_importance_sampling_ratio"]


def evaluate(name: str, batch: dict, **changes) -> dict:
    options = DEFAULTS | changes
    lengths = batch["lengths"]
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]

    def padded(flat):
        rows = torch.zeros(mask.shape)
        rows[mask] = torch.tensor(flat)
        return rows

    policy = padded(batch["policy"]).requires_grad_()
    rows = {"prompt_ids": torch.zeros(len(lengths), 1, dtype=torch.long),
            "prompt_mask": torch.ones(len(lengths), 1, dtype=torch.long),
            "completion_ids": torch.zeros(mask.shape, dtype=torch.long), "completion_mask": mask.long(),
            "advantages": torch.tensor(batch["advantages"]), "ref_per_token_logps": padded(batch["reference"])}
    if batch["old"] is not None:
        rows["old_per_token_logps"] = padded(batch["old"])
    entropies = padded(batch["entropy"]) if "entropy" in batch else torch.zeros(mask.shape)
    entropies.requires_grad_()
    if "rollout" in batch:
        rows["sampling_per_token_logps"] = padded(batch["rollout"])
    if options["rollout_correction"] != "none":
        rows["importance_sampling_ratio"] = correction_weights(options, rows["old_per_token_logps"],
                                                               rows["sampling_per_token_logps"], mask)
    loss = 0.0
    for index in torch.arange(len(lengths)).chunk(options["micro_batches"]):
        inputs = {key: value[index] for key, value in rows.items()} | {"num_items_in_batch": mask.sum()}
        trainer = stub_trainer(options, policy[index], entropies[index])
        part = GRPOTrainer._compute_loss(trainer, None, inputs)
        part.backward()
        loss += part.item()
    case = {"name": name, **batch, **options, "loss": loss, "gradient": policy.grad[mask].tolist()}
    if entropies.grad is not None:
        case["entropy_gradient"] = entropies.grad[mask].tolist()
    case["off_policy_threshold"] = options["off_policy_threshold"] or 0.0
    # TRL counts completions, not tokens, where the ratio is the sequence's.
    if options["micro_batches"] == 1 and options["importance_sampling_level"] == "token":
        logged = trainer._metrics["train"]
        metrics = {"kl": "kl", "clip_low": "clip_ratio/low_mean", "clip_high": "clip_ratio/high_mean"}
        if options["loss_type"] == "cispo":
            metrics["clip_high"] = "cispo_clip_ratio"
        case |= {key: logged[logged_as][0] for key, logged_as in metrics.items() if logged_as in logged}
    return case


def golden_cases() -> list[dict]:
    rewards = torch.tensor([1, 0.25, 0, 0.75])
    batch = {
        "lengths": [3, 2, 1, 3],
        "policy": [-0.7, -0.6, -2, -0.9, -0.8, -0.8, -1.4, -0.25, -0.4],
        "old": [-1, -0.5, -2, -0.7, -1.2, -0.3, -1.5, -0.2, -0.9],
        "reference": [-1.1, -0.5, -1.9, -0.7, -1, -0.4, -1.5, -0.3, -0.8],
        "advantages": ((rewards - rewards.mean()) / (rewards.std() + 1e-4)).tolist(),
    }
    cases = []
    for loss_type in ("grpo", "bnpo", "dapo", "dr_grpo"):
        for beta in (0.0, 0.04):
            cases.append(evaluate(f"golden {loss_type} beta {beta:g}", batch, loss_type=loss_type, beta=beta))
    for loss_type in ("grpo", "dapo", "dr_grpo"):
        cases.append(evaluate(f"golden {loss_type} eps_high 0.28", batch, loss_type=loss_type, epsilon_high=0.28))
    sequence = {"importance_sampling_level": "sequence"}
    cases.append(evaluate("golden gspo", batch, loss_type="grpo", **sequence))
    cases.append(evaluate("golden luspo", batch, loss_type="luspo", **sequence))
    for epsilon_high in (5.0, 0.2):
        cases.append(evaluate(f"golden cispo eps_high {epsilon_high:g}", batch, loss_type="cispo",
                              epsilon_high=epsilon_high))
    cases.append(evaluate("golden sapo", batch, loss_type="sapo"))
    return cases


def random_cases() -> list[dict]:
    random = np.random.default_rng(11)

    def random_batch(lengths, on_policy=False):
        def near(values, spread):
            return np.round(np.minimum(values + random.normal(0, spread, len(values)), -0.001), 4)

        old = near(-random.exponential(1.0, sum(lengths)), 0.0)
        policy = near(old, 0.4)
        return {"lengths": lengths, "policy": policy.tolist(), "old": None if on_policy else old.tolist(),
                "reference": near(policy, 0.3).tolist(),
                "advantages": np.round(random.normal(0, 1.2, len(lengths)), 4).tolist()}

    settings = [
        ([1, 4], {"loss_type": "grpo", "beta": 0.1, "delta": 1.5}),
        ([5, 0, 3, 2], {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.04}),
        ([7, 2, 4, 1], {"loss_type": "grpo", "micro_batches": 2, "epsilon_low": 0.1, "epsilon_high": 0.3}),
        ([3, 6, 2, 5], {"loss_type": "bnpo", "micro_batches": 2, "beta": 0.02}),
        ([8, 3, 1], {"loss_type": "dr_grpo", "max_completion_length": 16, "delta": 1.3, "beta": 0.04}),
        ([2, 9, 4, 4], {"loss_type": "dapo", "micro_batches": 4, "epsilon_high": 0.28, "beta": 0.04}),
        ([4, 0, 5, 1], {"loss_type": "dapo", "importance_sampling_level": "sequence", "delta": 1.4}),
        ([6, 3, 3, 2], {"loss_type": "luspo", "importance_sampling_level": "sequence", "micro_batches": 2,
                        "beta": 0.05, "epsilon_low": 0.05, "epsilon_high": 0.05}),
        ([3, 5, 2], {"loss_type": "luspo", "beta": 0.04, "delta": 1.6}),
        ([4, 7, 1, 3], {"loss_type": "cispo", "epsilon_high": 1.2, "micro_batches": 2, "beta": 0.03}),
        ([5, 2, 6], {"loss_type": "cispo", "importance_sampling_level": "sequence", "epsilon_high": 1.02}),
        ([3, 8, 0, 2], {"loss_type": "sapo", "sapo_temperature_pos": 0.8, "sapo_temperature_neg": 1.7, "beta": 0.04}),
        ([6, 1, 4, 2], {"loss_type": "sapo", "importance_sampling_level": "sequence", "micro_batches": 2}),
    ]
    cases = [evaluate(f"random {i}", random_batch(lengths), **changes)
             for i, (lengths, changes) in enumerate(settings)]
    for loss_type in ("grpo", "dapo", "luspo", "cispo", "sapo"):
        level = "sequence" if loss_type == "luspo" else "token"
        epsilon_high = 5.0 if loss_type == "cispo" else 0.28
        cases.append(evaluate(f"on-policy {loss_type}", random_batch([3, 1, 4], on_policy=True), loss_type=loss_type,
                              importance_sampling_level=level, epsilon_high=epsilon_high, beta=0.04))
    return cases


def extended_cases() -> list[dict]:
    """What TRL calls bias-corrected KL, entropy bonus, high-entropy tokens, off-policy mask, importance correction."""
    random = np.random.default_rng(12)

    def batch(lengths):
        def near(values, spread):
            return np.round(np.minimum(values + random.normal(0, spread, len(values)), -0.001), 4)

        old = near(-random.exponential(1.0, sum(lengths)), 0.0)
        policy = near(old, 0.4)
        return {"lengths": lengths, "policy": policy.tolist(), "old": old.tolist(),
                "reference": near(policy, 0.3).tolist(), "rollout": near(old, 0.3).tolist(),
                "entropy": np.round(random.exponential(1.0, sum(lengths)), 4).tolist(),
                "advantages": np.round(random.normal(0, 1.2, len(lengths)), 4).tolist()}

    settings = [
        {"loss_type": "grpo", "beta": 0.1, "bias_corrected_kl": True},
        {"loss_type": "grpo", "beta": 0.1, "bias_corrected_kl": True, "importance_sampling_level": "sequence"},
        {"loss_type": "dapo", "entropy_coef": 0.02},
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "entropy_coef": 0.01, "beta": 0.04},
        {"loss_type": "dapo", "top_entropy_quantile": 0.2, "beta": 0.04},
        {"loss_type": "grpo", "top_entropy_quantile": 0.55, "entropy_coef": 0.03},
        {"loss_type": "dapo", "top_entropy_quantile": 0.11},
        {"loss_type": "dapo", "off_policy_threshold": 0.05},
        {"loss_type": "grpo", "off_policy_threshold": 0.01, "beta": 0.02},
    ]
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        settings.append({"loss_type": "dapo", "rollout_correction": mode, "correction_min": 0.8, "correction_max": 1.25})
        settings.append({"loss_type": "grpo", "rollout_correction": mode, "correction_max": 1.1, "beta": 0.04})
    return [evaluate(f"extended {i}", batch([4, 7, 2, 5]), **changes) for i, changes in enumerate(settings)]


def advantage_cases() -> list[dict]:
    """TRL's advantages, rewards of None (null) included."""
    random = np.random.default_rng(13)
    source = lines_between("unscorable_mask =", "advantages = torch.nan_to_num")
    cases = []
    for group_size, num_groups, weights in ((4, 1, [1.0]), (4, 3, [1.0, 2.0, 0.2]), (8, 2, [0.5, 1.0])):
        for scaling in ("group", "batch", "none", "decoupled"):
            rewards = np.round(random.uniform(0, 1, (group_size * num_groups, len(weights))), 3)
            rewards[random.uniform(size=rewards.shape) < 0.25] = np.nan
            if num_groups > 1:
                rewards[:group_size] = 0.5  # a group without signal
            trainer = types.SimpleNamespace(
                multi_objective_aggregation="normalize_then_sum" if scaling == "decoupled" else "sum_then_normalize",
                scale_rewards=scaling, reward_weights=torch.tensor(weights), reward_funcs=weights)
            names = {"self": trainer, "rewards_per_func": torch.tensor(rewards), "num_generations": group_size,
                     "device": "cpu", "torch": torch, "nanstd": grpo_trainer.nanstd}
            exec(source, names)  # noqa: S102 - TRL's own lines
            cases.append({"name": f"{scaling} {num_groups} x {group_size}", "scaling": scaling,
                          "group_size": group_size, "weights": weights,
                          "rewards": [[None if np.isnan(x) else x for x in row] for row in rewards.tolist()],
                          "advantages": names["advantages"].tolist()})
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--out", type=pathlib.Path, default=here.parent / "data" / "policy_loss" / "golden.json")
    arguments = parser.parse_args()

    def write(file, source, cases):
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        file.write_text(f'{{"source": "trl {trl.__version__} {source}", "cases": [\n{lines}\n]}}\n')

    write(arguments.out, "GRPOTrainer._compute_loss", golden_cases() + random_cases() + extended_cases())
    write(arguments.out.with_name("advantages.json"), "GRPOTrainer._generate_and_score_completions", advantage_cases())


if __name__ == "__main__":
    main()
