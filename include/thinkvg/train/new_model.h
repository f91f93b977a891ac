#pragma once

#include <string>
#include <vector>

#include "thinkvg/core/settings.h"

namespace thinkvg::train {

// Dimensions of a new model of the Qwen2.5-VL architecture.
struct NewModelOptions {
  struct Language {
    std::int64_t hidden_size = 128;
    std::int64_t num_layers = 4;
    std::int64_t num_heads = 4;
    std::int64_t num_kv_heads = 4;
    std::int64_t intermediate_size = 384;
    double rope_theta = 100.0;
    std::vector<std::int64_t> mrope_section = {4, 6, 6};
    bool tie_embeddings = true;

    void visit(SettingsVisitor& v) {
      v.setting("hidden_size", hidden_size, "Width.");
      v.setting("num_layers", num_layers, "Decoder layers.");
      v.setting("num_heads", num_heads, "Query heads.");
      v.setting("num_kv_heads", num_kv_heads, "Key/value heads; divides num_heads.");
      v.setting("intermediate_size", intermediate_size, "Width inside the MLP.");
      v.setting("rope_theta", rope_theta, "Base of the rotary frequencies; small for small pictures and short texts.");
      v.setting("mrope_section", mrope_section, "Rotary frequencies of time, height, width; sum: half a head's width.");
      v.setting("tie_embeddings", tie_embeddings, "Use the embedding table as output head, too.");
    }
  };
  struct Vision {
    std::int64_t hidden_size = 128;
    std::int64_t depth = 4;
    std::int64_t num_heads = 4;
    std::int64_t intermediate_size = 384;
    std::int64_t patch_size = 14;
    std::int64_t window_size = 112;
    std::vector<std::int64_t> full_attention_blocks = {1, 3};

    void visit(SettingsVisitor& v) {
      v.setting("hidden_size", hidden_size, "Width.");
      v.setting("depth", depth, "Blocks.");
      v.setting("num_heads", num_heads, "Heads.");
      v.setting("intermediate_size", intermediate_size, "Width inside the MLP.");
      v.setting("patch_size", patch_size, "Side of a patch in pixels; 2 x 2 patches become one image token.");
      v.setting("window_size", window_size, "Side of an attention window in pixels.");
      v.setting("full_attention_blocks", full_attention_blocks, "Blocks that attend to the whole picture.");
    }
  };

  std::string out;
  std::string data;
  std::int64_t seed = 0;
  std::int64_t vocab_size = 768;
  std::int64_t image_size = 112;
  Language language;
  Vision vision;

  void visit(SettingsVisitor& v) {
    v.setting("out", out, "Model folder to write.");
    v.setting("data", data, "Data set whose texts the tokenizer is trained on.");
    v.setting("seed", seed, "Seed of the weights.");
    v.setting("vocab_size", vocab_size, "Pieces of the tokenizer.");
    v.setting("image_size", image_size, "Pictures are padded to a square and resized to this side.");
    v.section("language", language, "The decoder.");
    v.section("vision", vision, "The vision tower.");
  }
};

// Trains the tokenizer and writes a model folder with random weights. Throws std::invalid_argument for dimensions that
// do not fit each other.
void make_new_model(const NewModelOptions& options);

// A dense warm-up that stands in for a pretrained tower: the tower with a linear head on its image tokens learns, from
// the phantom's annotations, which share of each token every region and every finding covers.
struct WarmupOptions {
  std::string model;
  std::string annotations;
  std::string images;
  std::string out;
  std::int64_t seed = 0;
  std::int64_t steps = 1500;
  std::int64_t batch_size = 32;
  double lr = 2e-3;
  std::int64_t num_threads = 0;

  void visit(SettingsVisitor& v) {
    v.setting("model", model, "Model folder to start from.");
    v.setting("annotations", annotations, "annotations.jsonl of a phantom set: boxes of regions and findings.");
    v.setting("images", images, "Folder that the picture paths are relative to.");
    v.setting("out", out, "Run folder to write.");
    v.setting("seed", seed, "Seed of the order of the pictures.");
    v.setting("steps", steps, "Optimizer steps.");
    v.setting("batch_size", batch_size, "Pictures a step.");
    v.setting("lr", lr, "Peak learning rate, cosine after a warm-up.");
    v.setting("num_threads", num_threads, "CPU threads; 0: one a core.");
  }
};
void run_warmup(const WarmupOptions& options);

}  // namespace thinkvg::train
