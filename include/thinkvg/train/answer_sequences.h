#pragma once

// Shape letters: T tokens.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "thinkvg/generation/question.h"
#include "thinkvg/train/example.h"

namespace thinkvg::train {

// A question, or a conversation about a picture, with the answers that are learned, as ids. The last id carries loss:
// what a template writes behind the last answer is left out.
struct TrainingSequence {
  const generation::Question* question = nullptr;  // of the first turn; must outlive the sequence
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> image_rows;  // places in `ids` that hold image tokens
  std::vector<std::int64_t> targets;  // places in `ids` that carry loss, ascending: the answers and their ends of turn
  at::Tensor positions;               // [3, T - 1] of all ids but the last, which nothing follows

  std::int64_t length() const { return static_cast<std::int64_t>(ids.size()); }
};

// `question` with its sample's answer, and the further turns of the sample (data::Sample::more_turns) behind it, each
// turn's answer as target_text() writes it. `prompt`: how the questions are put, as the question itself was built.
TrainingSequence make_training_sequence(const models::ModelBundle& bundle, const text::PromptOptions& prompt,
                                        const generation::Question& question, bool think);

// Noise on the embeddings of a training pass: uniform in +-alpha / sqrt(T * hidden_size) for each sequence (NEFTune;
// Jain et al. 2023, arXiv 2310.05914). What a model's embed() gives beyond hidden_size has none. alpha 0: none.
struct EmbeddingNoise {
  double alpha = 0;
  std::vector<std::uint64_t> keys;  // of each sequence's random numbers: they do not depend on what shares its pass
};

// The sum of the token losses of some sequences, computed in one packed pass: sequences do not see each other. With
// gradient where gradients are on. `builder` gives the pictures' features.
at::Tensor answer_loss_sum(const models::ModelBundle& bundle, generation::QuestionBuilder& builder,
                           std::span<const TrainingSequence> sequences, const EmbeddingNoise& noise = {});

// Which sequences share a pass of at most split.limit tokens (a longer one passes alone): places in `lengths`. As few
// passes as a multiple of split.workers allows, of lengths as even as may be. by_length: any sequences may share one
// (the number is that of data::pack_by_length), else neighbours in the given order.
std::vector<std::vector<std::int64_t>> pack_passes(const std::vector<std::int64_t>& lengths, const EvenSplit& split,
                                                   bool by_length);

}  // namespace thinkvg::train
