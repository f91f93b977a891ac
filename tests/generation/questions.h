#pragma once

#include <gmock/gmock.h>

#include <vector>

#include "tests/support/tiny_run.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/generation/rollout_engine.h"

namespace thinkvg::generation {

// Questions about pictures of the phantom set, and a new tiny model.
class QuestionsTest : public testing::Test {
 protected:
  void SetUp() override {
    const test::TinyRun& tiny = test::tiny_run();
    bundle_ = models::load_bundle(tiny.model);
    const auto dataset = data::open_dataset(tiny.test);
    QuestionBuilder builder(bundle_, {{}, tiny.images.string(), true, {}});
    std::vector<data::Sample> samples;
    for (std::int64_t i = 0; i < 6; ++i) samples.push_back(dataset->get(i));
    questions_ = builder.build(samples);
  }

  GenerationRequest request(std::size_t i, std::int64_t num_completions) const {
    const Question& question = questions_[i];
    return {question.prompt, question.grids, {question.features}, num_completions, {7, i}};
  }
  std::vector<GenerationRequest> requests(std::int64_t num_completions) const {
    std::vector<GenerationRequest> list;
    for (std::size_t i = 0; i < questions_.size(); ++i) list.push_back(request(i, num_completions));
    return list;
  }
  // A prompt of words alone.
  GenerationRequest text_request(const std::string& text, std::uint64_t key) const {
    GenerationRequest request;
    request.prompt = text::chat_prompt(*bundle_.tokenizer, "", text, {});
    request.stream = {11, key};
    return request;
  }
  // One question about two pictures.
  GenerationRequest two_pictures(std::size_t first, std::size_t second) const {
    const Question &a = questions_[first], &b = questions_[second];
    GenerationRequest request;
    request.prompt = text::chat_prompt(*bundle_.tokenizer, "", "Compare.", {a.features.size(0), b.features.size(0)});
    request.grids = {a.grids[0], b.grids[0]};
    request.image_features = {a.features, b.features};
    request.stream = {13, first, second};
    return request;
  }

  models::ModelBundle bundle_;
  std::vector<Question> questions_;
};

}  // namespace thinkvg::generation
