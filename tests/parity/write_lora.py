"""Writes the reference states of tests/models/adapters_parity_test.cc with peft.

Usage: python tests/parity/write_lora.py [--out tests/data/lora] [--models tests/data/qwen2_5_vl]

Random adapters on the tiny checkpoints of write_qwen2_5_vl.py: "tied" adapts every linear layer of decoder and tower,
"untied" two kinds of layers with rsLoRA and a rank of its own for one of them. Each folder is what peft saves, with the
logits and every adapter gradient for the case "several". Written with torch 2.11, transformers 5.23, peft 0.21.
"""

import argparse
import pathlib
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
IMAGE = 57
CONFIGS = {
    "tied": dict(r=3, lora_alpha=6, target_modules="all-linear"),
    "untied": dict(r=4, lora_alpha=10, use_rslora=True, target_modules=["q_proj", "down_proj"],
                   rank_pattern={"self_attn.q_proj": 2}, alpha_pattern={"self_attn.q_proj": 5}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=DATA / "lora")
    parser.add_argument("--models", type=pathlib.Path, default=DATA / "qwen2_5_vl")
    options = parser.parse_args()
    out, models = options.out, options.models
    torch.set_num_threads(1)
    for number, (name, options) in enumerate(CONFIGS.items()):
        torch.manual_seed(number)
        base = Qwen2_5_VLForConditionalGeneration.from_pretrained(models / name)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name:
                    parameter.normal_(std=0.3)
        case = load_file(models / name / "case_several.safetensors")
        ids = case["ids"][None]
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == IMAGE).int(),
                       pixel_values=case["pixel_values"], image_grid_thw=case["grids"], labels=case["labels"][None])
        output.loss.backward()
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        model.peft_config["default"].base_model_name_or_path = f"../../qwen2_5_vl/{name}"
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        state = {"logits": output.logits[0].detach().clone(), "loss": output.loss.detach().reshape(1)}
        for parameter_name, parameter in model.named_parameters():
            if parameter.grad is not None:
                state["grad:" + parameter_name.replace(".default", "")] = parameter.grad.clone()
        save_file({key: value.contiguous() for key, value in state.items()}, folder / "expected.safetensors")
        print(name, "loss", output.loss.item(), "adapters", sum("lora_A" in key for key in state))
        for file in folder.iterdir():
            file.chmod(0o644)


if __name__ == "__main__":
    main()
