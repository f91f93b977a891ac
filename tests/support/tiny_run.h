#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/support/temporary_folder.h"
#include "thinkvg/data/phantom.h"
#include "thinkvg/train/new_model.h"

namespace thinkvg::test {

// A phantom set of a few pictures and a new tiny model with its tokenizer, made once a test program.
struct TinyRun {
  std::filesystem::path root;
  std::filesystem::path train, test, annotations, images, model;
};

inline const TinyRun& tiny_run() {
  static const TemporaryFolder folder;
  static const TinyRun run = [] {
    TinyRun r;
    r.root = folder.path();
    data::PhantomOptions phantom;
    phantom.out = (r.root / "phantom").string();
    phantom.num_images = 40;
    phantom.num_dev = 4;
    phantom.num_test = 8;
    phantom.longest_side = 192;
    data::write_phantom(phantom);
    r.train = r.root / "phantom" / "data" / "train.parquet";
    r.test = r.root / "phantom" / "data" / "test.parquet";
    r.annotations = r.root / "phantom" / "annotations.jsonl";
    r.images = r.root / "phantom" / "files";
    r.model = r.root / "model";
    train::NewModelOptions model;
    model.out = r.model.string();
    model.data = r.train.string();
    model.vocab_size = 400;
    model.image_size = 56;
    model.language = {.hidden_size = 32,
                      .num_layers = 2,
                      .num_heads = 4,
                      .num_kv_heads = 2,
                      .intermediate_size = 48,
                      .mrope_section = {1, 1, 2}};
    model.vision = {
        .hidden_size = 32, .depth = 2, .num_heads = 2, .intermediate_size = 48, .full_attention_blocks = {1}};
    train::make_new_model(model);
    return r;
  }();
  return run;
}

}  // namespace thinkvg::test
