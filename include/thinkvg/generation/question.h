#pragma once

// Shape letters: I image tokens, D width.

#include <filesystem>
#include <string>
#include <vector>

#include "thinkvg/data/dataset.h"
#include "thinkvg/data/images.h"
#include "thinkvg/models/image_encoder.h"
#include "thinkvg/models/pack.h"
#include "thinkvg/text/chat.h"

namespace thinkvg::generation {

// A question with its picture, ready to be completed.
struct Question {
  data::Sample sample;
  text::Prompt prompt;
  models::TokenPositions positions;  // of the prompt
  std::filesystem::path picture;
  std::vector<models::ImageGrid> grids;
  grounding::BoxFrame frame;  // of the boxes in model text
  grounding::ImageSize original;
  at::Tensor features;  // [I, D], of a tower that is not trained; undefined otherwise

  grounding::ImageGeometry geometry() const { return grounding::ImageGeometry(original); }
};

// Turns samples into questions: finds and encodes the picture, tokenizes. Not thread-safe.
class QuestionBuilder {
 public:
  struct Options {
    text::PromptOptions prompt;
    std::string images;         // root folder, or several separated by commas
    bool frozen_vision = true;  // features come from memory; otherwise questions carry none
    models::PictureCache::Options pictures;
  };
  QuestionBuilder(models::ModelBundle bundle, const Options& options);

  // Throws std::runtime_error naming the sample whose picture is missing or unreadable.
  std::vector<Question> build(const std::vector<data::Sample>& samples);
  // Starts reading the pictures of samples that build() will be called for soon, in the background; returns at once.
  // May be called by another thread than build(). Throws as build() where a picture is missing.
  void prefetch(const std::vector<data::Sample>& samples);
  // The features of the questions' pictures [I, D] each, with gradient through the tower when it is trained.
  std::vector<at::Tensor> features(const std::vector<const Question*>& questions);
  models::ImageEncoder& encoder() { return encoder_; }

 private:
  models::ModelBundle bundle_;
  Options options_;
  data::ImageFinder finder_;
  models::ImageEncoder encoder_;
};

}  // namespace thinkvg::generation
