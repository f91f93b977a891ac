"""Writes the reference states of tests/models/family_parity_test.cc with transformers.

Usage: python tests/parity/write_qwen2_5_vl.py [--out tests/data/qwen2_5_vl]

Two tiny random Qwen2.5-VL checkpoints with unusual dimensions (one tied, in the config layout of transformers 4; one
untied, in that of transformers 5), each with several cases: text only, one picture, several pictures of odd sizes.
A case holds inputs, position ids, window order, image features, logits, loss, every gradient and greedy tokens.
Written with torch 2.11 and transformers 5.23, in fp32 on one thread.
"""

import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

IMAGE, START, END, EOS, PAD = 57, 58, 59, 2, 0
NUM_GREEDY = 64

CHECKPOINTS = {
    # 6 heads of width 6 on 2, full attention in the tower's middle, windows of 2 x 2 cells.
    "tied": {
        "tie": True,
        "text": dict(vocab_size=60, hidden_size=36, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6,
                     num_key_value_heads=2, rms_norm_eps=1e-6),
        "mrope_section": [1, 1, 1],
        "rope_theta": 1e4,
        "vision": dict(depth=3, hidden_size=24, intermediate_size=20, num_heads=3, patch_size=2, window_size=8,
                       fullatt_block_indexes=[1]),
    },
    # 3 heads of width 12 on 1, windows of 3 x 3 cells, full attention first and last.
    "untied": {
        "tie": False,
        "text": dict(vocab_size=60, hidden_size=36, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
                     num_key_value_heads=1, rms_norm_eps=1e-5),
        "mrope_section": [2, 1, 3],
        "rope_theta": 1e6,
        "vision": dict(depth=3, hidden_size=16, intermediate_size=22, num_heads=2, patch_size=3, window_size=18,
                       fullatt_block_indexes=[0, 2]),
    },
}
# Grids in patches; sides are multiples of 2. Windows of 2 (3) cells divide 8 x 12 evenly and 10 x 14 not.
CASES = {
    "text": [],
    "one": [(8, 12)],
    "several": [(10, 14), (2, 4), (6, 2)],
}


def make_model(spec):
    text = dict(spec["text"], max_position_embeddings=512, rope_theta=spec["rope_theta"],
                rope_scaling={"type": "mrope", "mrope_section": spec["mrope_section"]},
                bos_token_id=1, eos_token_id=EOS, pad_token_id=PAD)
    vision = dict(spec["vision"], out_hidden_size=spec["text"]["hidden_size"])
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=56,
                              vision_start_token_id=START, vision_end_token_id=END, tie_word_embeddings=spec["tie"])
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # large enough that every gradient counts
                parameter.normal_(std=1.5 / (parameter[0].numel() ** 0.5))
            else:
                parameter.normal_(mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
    return model


def version_4_layout(config, spec):
    """config.json as transformers 4 wrote it for the published checkpoints."""
    flat = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
            "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": PAD,
            "vision_start_token_id": START, "vision_end_token_id": END, "vision_token_id": 54, "image_token_id": IMAGE,
            "video_token_id": 56, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 512,
            "max_window_layers": 70, "use_cache": True, "use_sliding_window": False, "sliding_window": 32768,
            "tie_word_embeddings": spec["tie"], "torch_dtype": "float32", "rope_theta": spec["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": spec["mrope_section"]}, **spec["text"]}
    vision = dict(spec["vision"], out_hidden_size=spec["text"]["hidden_size"], in_chans=3, hidden_act="silu",
                  spatial_merge_size=2, spatial_patch_size=spec["vision"]["patch_size"], tokens_per_second=2,
                  temporal_patch_size=2)
    flat["vision_config"] = vision
    return flat


def make_ids(grids, generator):
    def words(count):
        return torch.randint(3, 54, (count,), generator=generator).tolist()

    ids = words(3)
    for height, width in grids:
        ids += [START] + [IMAGE] * (height * width // 4) + [END] + words(2)
    return ids + words(9)


def write_case(model, grids, generator):
    config = model.config
    vision = config.vision_config
    ids = make_ids(grids, generator)
    input_ids = torch.tensor([ids])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids),
              "mm_token_type_ids": (input_ids == IMAGE).int()}
    state = {"ids": input_ids[0]}
    if grids:
        num_patches = sum(h * w for h, w in grids)
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(num_patches, width, generator=generator)
        grid_thw = torch.tensor([(1, h, w) for h, w in grids])
        inputs |= {"pixel_values": pixels, "image_grid_thw": grid_thw}
        order, boundaries = get_vision_window_index(grid_thw, vision.spatial_merge_size, vision.window_size,
                                                    vision.patch_size)
        state |= {"pixel_values": pixels, "grids": grid_thw, "window_order": order.clone(),
                  "window_boundaries": boundaries.long()}
        state["image_features"] = torch.cat(model.get_image_features(pixels, grid_thw).pooler_output).detach().clone()
        positions, delta = model.model.get_rope_index(input_ids, inputs["mm_token_type_ids"], grid_thw)
        state["positions"] = positions[:, 0].clone()
        state["next_position"] = delta[0] + len(ids)
    else:
        state["positions"] = torch.arange(len(ids)).expand(3, -1).clone()
        state["next_position"] = torch.tensor([len(ids)])
    labels = input_ids.clone()
    labels[input_ids == IMAGE] = -100
    labels[:, :4] = -100
    model.zero_grad()
    output = model(**inputs, labels=labels)
    output.loss.backward()
    state |= {"labels": labels[0], "logits": output.logits[0].detach().clone(),
              "loss": output.loss.detach().reshape(1)}
    for name, parameter in model.named_parameters():
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if parameter.grad is not None:
            state["grad:" + name] = parameter.grad.clone()
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=NUM_GREEDY, min_new_tokens=NUM_GREEDY,
                               eos_token_id=None)
    state["greedy"] = generated[0, len(ids):].clone()
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[1] / "data" / "qwen2_5_vl")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for number, (name, spec) in enumerate(CHECKPOINTS.items()):
        torch.manual_seed(number)
        model = make_model(spec)
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        # "untied" lies in several shards.
        model.save_pretrained(folder, **({} if spec["tie"] else {"max_shard_size": "60KB"}))
        if spec["tie"]:
            flat = version_4_layout(model.config, spec)
            (folder / "config.json").write_text(json.dumps(flat, indent=2) + "\n")
            (folder / "generation_config.json").unlink()
            # The layout must still mean the same model.
            again = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
            assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))
        for case_number, (case, grids) in enumerate(CASES.items()):
            state = write_case(model, grids, torch.Generator().manual_seed(100 * number + case_number))
            save_file({key: value.contiguous() for key, value in state.items()}, folder / f"case_{case}.safetensors")
            print(name, case, "loss", state["loss"].item(), "tokens", state["ids"].numel(),
                  "greedy", state["greedy"].tolist()[:12])
        for file in folder.iterdir():
            file.chmod(0o644)


if __name__ == "__main__":
    main()
