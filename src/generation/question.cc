#include "thinkvg/generation/question.h"

#include "thinkvg/core/error.h"

namespace thinkvg::generation {

QuestionBuilder::QuestionBuilder(models::ModelBundle bundle, const Options& options)
    : bundle_(std::move(bundle)), options_(options), finder_(options.images), encoder_(bundle_, options.pictures) {}

std::vector<Question> QuestionBuilder::build(const std::vector<data::Sample>& samples) {
  std::vector<image::PictureRequest> requests;
  for (const data::Sample& sample : samples) {
    if (!sample.more_images.empty()) {
      throw_failure(
          "sample {} has {} pictures, but a question takes one here; leave such questions out with data.filter "
          "'num_images == 1'",
          sample.id, sample.more_images.size() + 1);
    }
    requests.push_back({finder_.require(sample), "sample " + sample.id});
  }
  std::vector<Question> questions(samples.size());
  const auto fill = [&](std::size_t i, const models::ImageGrid& grid, const grounding::BoxFrame& frame,
                        const grounding::ImageSize& original) {
    Question& question = questions[i];
    question.sample = samples[i];
    question.picture = requests[i].file;
    question.grids = {grid};
    question.frame = frame;
    question.original = original;
    std::string text = samples[i].prompt();
    if (!options_.prompt.instruction.empty()) text += "\n" + options_.prompt.instruction;
    question.prompt =
        text::chat_prompt(*bundle_.tokenizer, *bundle_.chat, options_.prompt.system, text,
                          {{bundle_.model->num_image_tokens(grid)}, bundle_.model->special_tokens().image});
    question.positions = bundle_.model->token_positions(question.prompt.ids, question.grids);
  };
  if (options_.frozen_vision) {
    const auto encoded = encoder_.encode(requests);
    for (std::size_t i = 0; i < samples.size(); ++i) {
      fill(i, encoded[i]->grid, encoded[i]->frame, encoded[i]->original);
      questions[i].features = encoded[i]->features;
    }
  } else {
    const auto pictures = encoder_.pictures().get(requests);
    for (std::size_t i = 0; i < samples.size(); ++i)
      fill(i, pictures[i]->processed.patches.grids.front(), pictures[i]->processed.frame, pictures[i]->original);
  }
  return questions;
}

void QuestionBuilder::prefetch(const std::vector<data::Sample>& samples) {
  std::vector<std::filesystem::path> files;
  for (const data::Sample& sample : samples) files.push_back(finder_.require(sample));
  if (options_.frozen_vision)
    encoder_.prefetch(files);
  else
    encoder_.pictures().prefetch(files);
}

std::vector<at::Tensor> QuestionBuilder::features(const std::vector<const Question*>& questions) {
  std::vector<at::Tensor> features;
  if (options_.frozen_vision) {
    for (const Question* question : questions) features.push_back(question->features);
    return features;
  }
  std::vector<image::PictureRequest> requests;
  for (const Question* question : questions) requests.push_back({question->picture, "sample " + question->sample.id});
  models::PixelPatches patches;
  std::vector<at::Tensor> values;
  std::vector<std::int64_t> counts;
  for (const auto& picture : encoder_.pictures().get(requests)) {
    values.push_back(picture->processed.patches.values);
    patches.grids.push_back(picture->processed.patches.grids.front());
    counts.push_back(bundle_.model->num_image_tokens(patches.grids.back()));
  }
  patches.values = at::cat(values, 0).to(bundle_.model->parameters().front().device());
  return bundle_.model->encode_images(patches).split_with_sizes(counts, 0);
}

}  // namespace thinkvg::generation
