"""Writes the reference states of tests/models/family_parity_test.cc with transformers.

Usage: python tests/parity/write_families.py [--out tests/data] [FAMILY ...]

For each family tiny random checkpoints with unusual dimensions, and for each of them several cases: a text that is
longer than any sliding window, one picture, several pictures. A case holds inputs, positions, image features, logits,
loss, every gradient (by the names of transformers' parameters) and greedy tokens. Qwen2.5-VL has a script of its own.
The layouts of LLaVA's own code are written from Hugging Face's model of the same weights, with its conventions: no row
for the image token, a tower in a CLIP folder, one linear layer as v1's projector.
Written with torch 2.11 and transformers 5.23, in fp32 on one thread.
"""

import argparse
import json
import pathlib
import shutil

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

IMAGE, START, END, EOS, PAD, VOCAB = 57, 58, 59, 2, 0, 60
NUM_GREEDY = 64


def randomize(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 0.0 if name.endswith("bias") else 1.0
            if "Gemma" in type(model).__name__ and "norm" in name and "vision_tower" not in name:
                centre = 0.0  # 1 + weight
            if parameter.dim() > 1:  # large enough that every gradient counts
                parameter.normal_(std=1.5 / (parameter[0].numel() ** 0.5))
            elif name.endswith("class_embedding"):
                parameter.normal_()
            else:
                parameter.normal_(mean=centre, std=0.2)
    return model.eval()


# Qwen2-VL and Qwen3-VL -------------------------------------------------------------------------------------------------

def qwen2_vl(tied):
    text = dict(vocab_size=VOCAB, hidden_size=36 if tied else 24, intermediate_size=28, num_hidden_layers=2,
                num_attention_heads=6 if tied else 3, num_key_value_heads=2 if tied else 1,
                rms_norm_eps=1e-6 if tied else 1e-5, max_position_embeddings=512, rope_theta=1e4,
                rope_scaling={"type": "mrope", "mrope_section": [1, 1, 1] if tied else [2, 1, 1]},
                bos_token_id=1, eos_token_id=EOS, pad_token_id=PAD)
    vision = dict(depth=2, embed_dim=24 if tied else 16, num_heads=3 if tied else 2, patch_size=2 if tied else 3,
                  mlp_ratio=2, hidden_size=text["hidden_size"])
    config = hf.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=56,
                              vision_start_token_id=START, vision_end_token_id=END, tie_word_embeddings=tied)
    model = randomize(hf.Qwen2VLForConditionalGeneration(config))
    flat = None
    if tied:  # config.json as transformers 4 wrote it
        flat = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **text,
                "vision_start_token_id": START, "vision_end_token_id": END, "vision_token_id": 54,
                "image_token_id": IMAGE, "video_token_id": 56, "hidden_act": "silu", "use_sliding_window": False,
                "sliding_window": 32768, "max_window_layers": 80, "tie_word_embeddings": True,
                "torch_dtype": "float32",
                "vision_config": dict(vision, in_chans=3, spatial_merge_size=2, spatial_patch_size=2,
                                      temporal_patch_size=2)}
    return model, flat


def qwen3_vl(tied):
    text = dict(vocab_size=VOCAB, hidden_size=20 if tied else 24, intermediate_size=28, num_hidden_layers=3,
                num_attention_heads=3, num_key_value_heads=1 if tied else 3, head_dim=12 if tied else 10,
                rms_norm_eps=1e-6, max_position_embeddings=512, attention_bias=not tied, bos_token_id=1,
                eos_token_id=EOS, pad_token_id=PAD,
                rope_parameters=dict(rope_type="default", rope_theta=1e4 if tied else 5e6, mrope_interleaved=True,
                                     mrope_section=[2, 2, 2] if tied else [3, 1, 1]))
    # A table of 5 x 5 places (one too many: 26), larger and smaller than the grids.
    vision = dict(depth=3, hidden_size=24 if tied else 16, intermediate_size=18, num_heads=3 if tied else 2,
                  patch_size=2 if tied else 3, out_hidden_size=text["hidden_size"], num_position_embeddings=26,
                  deepstack_visual_indexes=[0, 2] if tied else [1])
    config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=56,
                              vision_start_token_id=START, vision_end_token_id=END, tie_word_embeddings=tied)
    return randomize(hf.Qwen3VLForConditionalGeneration(config)), None


QWEN_GRIDS = {"text": [], "one": [(8, 12)], "several": [(10, 6), (2, 4), (6, 2)]}


def qwen_pictures(model, grids, generator):
    vision = model.config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(sum(h * w for h, w in grids), width, generator=generator)
    grid_thw = torch.tensor([(1, h, w) for h, w in grids])
    features = model.get_image_features(pixels, grid_thw)
    parts = [torch.cat(features.pooler_output)]
    parts += [torch.cat(layer) for layer in getattr(features, "deepstack_features", None) or []]
    return {"pixel_values": pixels, "image_grid_thw": grid_thw}, {
        "pixel_values": pixels, "grids": grid_thw, "image_features": torch.cat(parts, 1).detach()}


# LLaVA and Gemma 3 -----------------------------------------------------------------------------------------------------

CLIP = dict(model_type="clip_vision_model", hidden_size=18, intermediate_size=20, num_hidden_layers=3,
            num_attention_heads=3, image_size=12, patch_size=4, projection_dim=8)


def llava(kind):
    if kind == "vicuna":
        text = dict(model_type="llama", hidden_size=24, intermediate_size=28, num_attention_heads=3,
                    num_key_value_heads=3, rms_norm_eps=1e-5)
        options = dict(vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=9)
        vision = CLIP
    else:
        text = dict(model_type="mistral", hidden_size=20, intermediate_size=22, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=6, sliding_window=9, rms_norm_eps=1e-6)
        options = dict(vision_feature_layer=[1, -1], vision_feature_select_strategy="full", image_seq_length=10,
                       multimodal_projector_bias=False)
        vision = dict(CLIP, hidden_act="gelu", image_size=13)  # a margin of one pixel is not seen
    text |= dict(vocab_size=VOCAB, num_hidden_layers=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=EOS,
                 pad_token_id=PAD, rope_parameters=dict(rope_type="default", rope_theta=1e4))
    config = hf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE,
                            tie_word_embeddings=kind != "vicuna", **options)
    return randomize(hf.LlavaForConditionalGeneration(config)), None


def gemma3(tied):
    text = dict(vocab_size=VOCAB, hidden_size=20 if tied else 24, intermediate_size=26, num_hidden_layers=3,
                num_attention_heads=4 if tied else 3, num_key_value_heads=2 if tied else 1, head_dim=8 if tied else 6,
                query_pre_attn_scalar=8 if tied else 11, sliding_window=7 if tied else 11, rms_norm_eps=1e-6,
                max_position_embeddings=512, bos_token_id=1, eos_token_id=EOS, pad_token_id=PAD,
                sliding_window_pattern=2)
    if not tied:
        text |= dict(rope_scaling=dict(rope_type="linear", factor=8.0), rope_theta=1e6, rope_local_base_freq=1e4)
    vision = dict(model_type="siglip_vision_model", hidden_size=18, intermediate_size=20, num_hidden_layers=2,
                  num_attention_heads=3, image_size=18 if tied else 12, patch_size=3, vision_use_head=False)
    # The image token of one lies outside the vocabulary.
    config = hf.Gemma3Config(text_config=dict(text), vision_config=vision,
                             image_token_index=IMAGE if tied else VOCAB + 1, boi_token_index=START,
                             eoi_token_index=END, mm_tokens_per_image=9 if tied else 4, tie_word_embeddings=tied)
    flat = None
    if not tied:  # what transformers 4 wrote
        flat = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "boi_token_index": START,
                "eoi_token_index": END, "image_token_index": VOCAB + 1, "mm_tokens_per_image": 4,
                "tie_word_embeddings": False, "torch_dtype": "float32", "text_config": text, "vision_config": vision}
    return randomize(hf.Gemma3ForConditionalGeneration(config)), flat


SQUARE_GRIDS = {"text": [], "one": [0], "several": [0, 0]}


def square_pictures(model, grids, generator):
    vision = model.config.vision_config
    size, patch = vision.image_size, vision.patch_size
    side = size // patch
    pixels = torch.randn(len(grids), 3, size, size, generator=generator)
    seen = pixels[:, :, :side * patch, :side * patch]
    patches = seen.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * patch**2)
    features = model.get_image_features(pixels).pooler_output
    features = torch.cat(list(features)).reshape(-1, model.config.text_config.hidden_size)
    return {"pixel_values": pixels}, {"pixel_values": patches, "grids": torch.tensor([(1, side, side)] * len(grids)),
                                      "image_features": features.detach()}


# LLaVA as released -----------------------------------------------------------------------------------------------------

def llava_released(kind):
    """(model of Hugging Face, config.json and weights as LLaVA's own code writes them)."""
    text = dict(model_type="mistral" if kind == "v1_5" else "llama", hidden_size=24, intermediate_size=28,
                num_attention_heads=4, num_key_value_heads=2 if kind == "v1_5" else 4, num_hidden_layers=2,
                rms_norm_eps=1e-5, vocab_size=VOCAB + 1, max_position_embeddings=512, bos_token_id=1, eos_token_id=EOS,
                pad_token_id=PAD, rope_parameters=dict(rope_type="default", rope_theta=1e4))
    if kind == "v1_5":
        text["sliding_window"] = None
    config = hf.LlavaConfig(text_config=text, vision_config=CLIP, image_token_index=VOCAB, image_seq_length=9,
                            projector_hidden_act="gelu" if kind == "v1_5" else "linear", tie_word_embeddings=False)
    model = randomize(hf.LlavaForConditionalGeneration(config))
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCAB] = 0
        model.lm_head.weight[VOCAB] = 0
        if kind == "v1":
            model.model.multi_modal_projector.linear_2.weight.copy_(torch.eye(24))
            model.model.multi_modal_projector.linear_2.bias.zero_()
    weights = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().clone()
        if name in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
            value = value[:VOCAB].clone()
        if name.startswith("model.vision_tower."):
            if kind == "v1":
                continue
            name = name.replace("model.vision_tower.", "model.vision_tower.vision_tower.vision_model.")
        if name.startswith("model.multi_modal_projector."):
            if kind == "v1" and "linear_2" in name:
                continue
            new = {"linear_1": "mm_projector.0" if kind == "v1_5" else "mm_projector", "linear_2": "mm_projector.2"}
            for old, published in new.items():
                name = name.replace("multi_modal_projector." + old, published)
        weights[name.replace("model.language_model.", "model.")] = value
    flat = {key: value for key, value in text.items() if key not in ("model_type", "rope_parameters", "vocab_size")}
    flat |= {"model_type": "llava_mistral" if kind == "v1_5" else "llava",
             "architectures": ["LlavaMistralForCausalLM" if kind == "v1_5" else "LlavaLlamaForCausalLM"],
             "vocab_size": VOCAB, "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": False,
             "torch_dtype": "float32", "mm_vision_tower": "somebody/tiny-clip", "mm_hidden_size": CLIP["hidden_size"],
             "mm_vision_select_layer": -2, "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
             "tune_mm_mlp_adapter": False, "freeze_mm_mlp_adapter": False}
    if kind == "v1_5":
        flat |= {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
                 "unfreeze_mm_vision_tower": True, "mm_patch_merge_type": "flat"}
    else:
        flat["use_mm_proj"] = True
    return model, flat, weights


def write_released(folder, kind):
    model, flat, weights = llava_released(kind)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(flat, indent=2) + "\n")
    # The CLIP folder that both name: of v1 it holds the tower itself.
    clip = folder.parent / "tiny-clip"
    if kind == "v1":
        tower = {"vision_model." + name: value.detach().clone().contiguous()
                 for name, value in model.model.vision_tower.named_parameters()}
        tower |= {"vision_model.embeddings.position_ids": torch.arange(10)[None], "logit_scale": torch.ones(()),
                  "text_model.final_layer_norm.weight": torch.ones(4), "visual_projection.weight": torch.ones(8, 18)}
        shutil.rmtree(clip, ignore_errors=True)
        clip.mkdir()
        save_file(tower, clip / "model.safetensors", metadata={"format": "pt"})
        (clip / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": CLIP}, indent=2) + "\n")
        for file in clip.iterdir():
            file.chmod(0o644)
    return model


# -----------------------------------------------------------------------------------------------------------------------

FAMILIES = {
    "qwen2_vl": ({"tied": lambda: qwen2_vl(True), "untied": lambda: qwen2_vl(False)}, QWEN_GRIDS, qwen_pictures),
    "qwen3_vl": ({"tied": lambda: qwen3_vl(True), "untied": lambda: qwen3_vl(False)}, QWEN_GRIDS, qwen_pictures),
    "llava": ({"vicuna": lambda: llava("vicuna"), "mistral": lambda: llava("mistral")}, SQUARE_GRIDS, square_pictures),
    "llava_med": ({"v1_5": None, "v1": None}, SQUARE_GRIDS, square_pictures),
    "gemma3": ({"tied": lambda: gemma3(True), "untied": lambda: gemma3(False)}, SQUARE_GRIDS, square_pictures),
}


def image_token(config):
    return config.image_token_id if hasattr(config, "image_token_id") else config.image_token_index


def write_case(model, grids, make_pictures, generator):
    config = model.config
    image = image_token(config)
    qwen = hasattr(config, "vision_start_token_id")

    def words(count):
        return torch.randint(3, 54, (count,), generator=generator).tolist()

    state, inputs = {}, {}
    if grids:
        inputs, state = make_pictures(model, grids, generator)
    per_picture = []
    for number, grid in enumerate(grids):
        per_picture.append(grid[0] * grid[1] // 4 if qwen else len(state["image_features"]) // len(grids))
    ids = words(3 if grids else 60)
    for length in per_picture:
        ids += [START] + [image] * length + [END] + words(2)
    ids += words(9)
    input_ids = torch.tensor([ids])
    inputs |= {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    kinds = (input_ids == image).int()
    if qwen:
        inputs["mm_token_type_ids"] = kinds
    elif config.model_type == "gemma3":
        inputs["token_type_ids"] = kinds
    state["ids"] = input_ids[0]
    state["positions"] = torch.arange(len(ids)).expand(3, -1).clone()
    state["next_position"] = torch.tensor([len(ids)])
    if qwen and grids:
        positions, delta = model.model.get_rope_index(input_ids, kinds, inputs["image_grid_thw"])
        state["positions"] = positions[:, 0].clone()
        state["next_position"] = delta[0] + len(ids)
    labels = input_ids.clone()
    labels[input_ids == image] = -100
    labels[:, :4] = -100
    model.zero_grad()
    output = model(**inputs, labels=labels)
    output.loss.backward()
    state |= {"labels": labels[0], "logits": output.logits[0].detach().clone(),
              "loss": output.loss.detach().reshape(1)}
    for name, parameter in model.named_parameters():
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
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1] / "data")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="of " + ", ".join(FAMILIES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    for family in options.families or FAMILIES:
        checkpoints, cases, make_pictures = FAMILIES[family]
        for number, (name, make) in enumerate(checkpoints.items()):
            torch.manual_seed(number)
            folder = options.out / family / name
            if family == "llava_med":
                model = write_released(folder, name)
            else:
                model, flat = make()
                shutil.rmtree(folder, ignore_errors=True)
                model.save_pretrained(folder)
                (folder / "generation_config.json").unlink()
                if flat:
                    (folder / "config.json").write_text(json.dumps(flat, indent=2) + "\n")
                # The folder must still mean the same model.
                again = type(model).from_pretrained(folder)
                assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))
                mine, theirs = model.config.to_dict(), again.config.to_dict()
                for key in ("text_config", "vision_config"):
                    ignored = ("dtype", "_name_or_path", "tie_word_embeddings")
                    wanted = {name: value for name, value in mine[key].items() if name not in ignored}
                    found = {name: theirs[key].get(name) for name in wanted}
                    assert found == wanted, {name: (wanted[name], found[name]) for name in wanted
                                             if wanted[name] != found[name]}
            for case_number, (case, grids) in enumerate(cases.items()):
                state = write_case(model, grids, make_pictures,
                                   torch.Generator().manual_seed(100 * number + case_number))
                save_file({key: value.contiguous() for key, value in state.items()},
                          folder / f"case_{case}.safetensors")
                print(family, name, case, "loss", state["loss"].item(), "tokens", state["ids"].numel(),
                      "greedy", state["greedy"].tolist()[:12])
            for file in folder.iterdir():
                file.chmod(0o644)


if __name__ == "__main__":
    main()
