"""Writes the reference state of tests/rl/grpo_update_parity_test.cc: whole GRPO updates by TRL's GRPOTrainer.

The real trainer runs one optimizer step of the tiny Qwen2.5-VL in tests/data/qwen2_5_vl/tied on two questions with a
picture each, four completions a question. Only what would be random is given to it: the completions in place of
generated ones, the rewards by functions that look them up, and, where a case is off-policy, the old log-probabilities.
The reference has all weights times 0.95. Stored are the loss (the sum over the accumulated micro-batches) and the
gradient that the optimizer would see: for the first case whole, for all as norm and two projections a parameter.

Usage: python tests/parity/write_grpo_update.py [--out tests/data/grpo_update]
"""

import argparse
import json
import math
import os
import pathlib
import tempfile

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset, Features, Value
from datasets import Image as Picture
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor,
                          Qwen2VLImageProcessor, Qwen2VLVideoProcessor, TrainerCallback)
from trl import GRPOConfig, GRPOTrainer

ROOT = pathlib.Path(__file__).resolve().parents[1] / "data"
MODEL = ROOT / "qwen2_5_vl" / "tied"
IMAGE, VIDEO, START, END, EOS, PAD = 57, 56, 58, 59, 2, 0
GROUP, MAX_LENGTH, TEMPERATURE, REFERENCE_SCALE = 4, 9, 0.8, 0.95

QUESTIONS = ["w7 w12 w33", "w8 w40 w21 w11 w19"]
SIZES = [(24, 16), (16, 20)]  # width and height of the pictures
# The last id of a completion that ends by itself is the end token.
COMPLETIONS = [
    [[5, 14, 27, 33, EOS], [9, 10, EOS], [44, 3, 51, 20, 20, 6, 17, 8, 30], [16, EOS]],
    [[23, 24, EOS], [30, 31, 32, 7, 50, EOS], [4, 5, 6, 7, 8, 9, 10, 11, 12], [EOS]],
]
# "first" and "second", the latter with one that is not applicable.
REWARDS = [
    [[1.0, 0.25, 0.0, 0.75], [0.6, 0.4, None, 0.5]],
    [[0.0, 1.0, 0.5, 0.0], [0.2, 0.9, 0.1, 0.3]],
]
WEIGHTS = [1.0, 0.5]

CASES = [
    dict(name="dapo", loss_type="dapo", beta=0.04, off_policy=True),
    dict(name="grpo on-policy", loss_type="grpo", beta=0.0),
    dict(name="dapo on-policy", loss_type="dapo", beta=0.04),
    dict(name="grpo", loss_type="grpo", beta=0.1, off_policy=True, scale_rewards="batch"),
    dict(name="bnpo", loss_type="bnpo", beta=0.04, off_policy=True, micro_batches=1),
    dict(name="dr_grpo", loss_type="dr_grpo", beta=0.04, off_policy=True, scale_rewards="none"),
    dict(name="luspo", loss_type="luspo", beta=0.0, off_policy=True, importance_sampling_level="sequence"),
    dict(name="cispo", loss_type="cispo", beta=0.04, off_policy=True, epsilon_high=5.0),
    dict(name="sapo", loss_type="sapo", beta=0.04, off_policy=True),
    dict(name="gspo", loss_type="grpo", beta=0.04, off_policy=True, importance_sampling_level="sequence"),
    dict(name="gdpo", loss_type="dapo", beta=0.04, off_policy=True, multi_objective_aggregation="normalize_then_sum"),
    dict(name="entropy", loss_type="dapo", beta=0.04, off_policy=True, micro_batches=1, entropy_coef=0.05,
         top_entropy_quantile=0.5, delta=1.5),
    dict(name="kl without correction", loss_type="dapo", beta=0.04, off_policy=True, use_bias_correction_kl=False),
    dict(name="truncated", loss_type="dapo", beta=0.04, off_policy=True, mask_truncated_completions=True),
]
DEFAULTS = dict(off_policy=False, micro_batches=2, scale_rewards="group", importance_sampling_level="token",
                epsilon_high=0.28, multi_objective_aggregation="sum_then_normalize", entropy_coef=0.0,
                top_entropy_quantile=1.0, delta=None, mask_truncated_completions=False,
                use_bias_correction_kl=True)


def make_processor():
    vocabulary = {"<pad>": PAD, "<unk>": 1, "<eos>": EOS} | {f"w{i}": i for i in range(3, 56)}
    vocabulary |= {"<|video_pad|>": VIDEO, "<|image_pad|>": IMAGE, "<|vision_start|>": START, "<|vision_end|>": END}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side="left",  # as TRL asks for
        eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"])
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    size = {"shortest_edge": 64, "longest_edge": 4096}
    pictures = Qwen2VLImageProcessor(patch_size=2, temporal_patch_size=2, merge_size=2, size=size)
    videos = Qwen2VLVideoProcessor(patch_size=2, temporal_patch_size=2, merge_size=2)
    template = ("{% for m in messages %}w3 {% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
                "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %} {{ c.text }}"
                "{% endif %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %} w4{% endif %}")
    return Qwen2_5_VLProcessor(pictures, tokenizer, videos, chat_template=template)


def make_picture(number):
    generator = torch.Generator().manual_seed(number)
    width, height = SIZES[number]
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def old_log_probs():
    """One number a token: near what the model gives, some beyond the clipping bounds."""
    generator = torch.Generator().manual_seed(7)
    return [[(torch.randn(len(ids), generator=generator) * 0.25).tolist() for ids in group] for group in COMPLETIONS]


class GivenTrainer(GRPOTrainer):
    """TRL's trainer with given completions, and old log-probabilities of `shifts` around the model's own."""

    shifts = None

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **_):
        self.seen_prompts = [list(ids) for ids in prompt_ids]
        return [list(ids) for group in COMPLETIONS for ids in group], None

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.seen = {key: value for key, value in output.items() if torch.is_tensor(value)}
        self.seen_advantages = output["advantages"].clone()
        if self.shifts is not None:
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
            mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
            # A masked completion's tokens are not attended to, and carry no loss: any numbers will do.
            fields = {key: output[key] for key in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
                      if key in output}
            with torch.no_grad():
                own, _, _ = self._get_per_token_logps_and_entropies(
                    self.model, ids, mask, output["completion_ids"].size(1), batch_size=len(ids), **fields)
            old = own.clone()
            flat = [shift for group in self.shifts for shift in group]
            self.stored_old = []
            for i, shift in enumerate(flat):
                old[i, : len(shift)] += torch.tensor(shift)
                self.stored_old.append(old[i, : len(shift)].tolist())
            output["old_per_token_logps"] = old
        return output

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        self.losses = getattr(self, "losses", []) + [loss.item()]
        return loss


class KeepGradients(TrainerCallback):
    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
                self.gradients[name] = parameter.grad.detach().clone()


def summary(gradient):
    """Norm and two projections, on vectors that are easily made again."""
    flat = gradient.double().flatten()
    index = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    return [flat.norm().item(), (flat * torch.cos(index)).sum().item(), (flat * torch.sin(1.7 * index)).sum().item()]


def run_case(case, processor):
    options = DEFAULTS | case
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32)
    rows = {"prompt": [[{"role": "user", "content": text}] for text in QUESTIONS],
            "index": list(range(len(QUESTIONS))), "image": [make_picture(i) for i in range(len(QUESTIONS))]}
    message = {"role": Value("string"), "content": Value("string")}
    data = Dataset.from_dict(rows, features=Features({"prompt": [message], "index": Value("int64"), "image": Picture()}))

    def reward(number):
        def look_up(completion_ids, index, **_):
            return [REWARDS[i][number][COMPLETIONS[i].index(list(ids))] for i, ids in zip(index, completion_ids)]

        look_up.__name__ = ("first", "second")[number]
        return look_up

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=8 // options["micro_batches"],
            gradient_accumulation_steps=options["micro_batches"], num_generations=GROUP, max_steps=1,
            max_completion_length=MAX_LENGTH, temperature=TEMPERATURE, beta=options["beta"],
            loss_type=options["loss_type"], epsilon=0.2, epsilon_high=options["epsilon_high"], delta=options["delta"],
            importance_sampling_level=options["importance_sampling_level"], scale_rewards=options["scale_rewards"],
            multi_objective_aggregation=options["multi_objective_aggregation"], reward_weights=WEIGHTS,
            entropy_coef=options["entropy_coef"], top_entropy_quantile=options["top_entropy_quantile"],
            mask_truncated_completions=options["mask_truncated_completions"],
            use_bias_correction_kl=options["use_bias_correction_kl"], learning_rate=1e-6, max_grad_norm=0.0,
            use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], logging_steps=1, save_strategy="no",
            shuffle_dataset=False, disable_tqdm=True)
        keep = KeepGradients()
        trainer = GivenTrainer(model, [reward(0), reward(1)], args=config, train_dataset=data,
                               processing_class=processor, callbacks=[keep])
        if trainer.ref_model is not None:
            # TRL loads it anew, in a type of its own choosing: the policy's weights as they are.
            trainer.ref_model.float().load_state_dict(model.state_dict())
            with torch.no_grad():
                for parameter in trainer.ref_model.parameters():
                    parameter.mul_(REFERENCE_SCALE)
        trainer.shifts = old_log_probs() if options["off_policy"] else None
        trainer.train()
    result = {key: value for key, value in options.items() if value is not None}
    result |= {"loss": math.fsum(trainer.losses), "advantages": trainer.seen_advantages.tolist(),
               "gradients": {name: summary(gradient) for name, gradient in keep.gradients.items()}}
    if options["off_policy"]:
        result["old_log_probs"] = trainer.stored_old
    return result, keep.gradients, trainer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "grpo_update")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    processor = make_processor()
    cases, state = [], {}
    for number, case in enumerate(CASES):
        result, gradients, trainer = run_case(case, processor)
        cases.append(result)
        print(case["name"], "loss", result["loss"], "parameters", len(gradients),
              "norm", math.sqrt(math.fsum(value[0] ** 2 for value in result["gradients"].values())))
        if number > 0:
            continue
        state |= {"grad:" + name: gradient.contiguous() for name, gradient in gradients.items()}
        prompts = trainer.seen_prompts[::GROUP]
        pictures = processor.image_processor([make_picture(i) for i in range(len(QUESTIONS))], return_tensors="pt")
        rows = pictures["image_grid_thw"].prod(-1).tolist()
        for i, patches in enumerate(torch.split(pictures["pixel_values"], rows)):
            state[f"pixel_values_{i}"] = patches.contiguous()
            state[f"grid_{i}"] = pictures["image_grid_thw"][i].contiguous()
    save_file(state, out / "state.safetensors")
    document = {"prompts": prompts, "completions": COMPLETIONS, "rewards": REWARDS, "weights": WEIGHTS,
                "temperature": TEMPERATURE, "reference_scale": REFERENCE_SCALE, "max_completion_length": MAX_LENGTH,
                "cases": cases}
    (out / "cases.json").write_text(json.dumps(document) + "\n")
    for file in out.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main()
