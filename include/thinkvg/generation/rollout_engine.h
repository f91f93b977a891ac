#pragma once

// Shape letters: I image tokens, D width, G completions of one prompt.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/models/pack.h"
#include "thinkvg/text/chat.h"

namespace thinkvg::generation {

struct SamplingOptions {
  std::int64_t max_new_tokens = 256;
  double temperature = 1.0;
  std::int64_t top_k = 0;
  double top_p = 1.0;

  void visit(SettingsVisitor& v) {
    v.setting("max_new_tokens", max_new_tokens, "A completion is cut behind this many tokens.");
    v.setting("temperature", temperature, "Logits are divided by it; 0 takes the likeliest token.");
    v.setting("top_k", top_k, "Sample among this many likeliest tokens; 0: all.");
    v.setting("top_p", top_p, "Sample among the likeliest tokens that together have this probability.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
};

// One prompt and how often it is to be completed.
struct GenerationRequest {
  text::Prompt prompt;
  std::vector<models::ImageGrid> grids;    // of its pictures
  std::vector<at::Tensor> image_features;  // [I, D] each
  std::int64_t num_completions = 1;        // G
  std::vector<std::uint64_t> stream;       // key of its random numbers; completion g uses {stream.., g}
};

enum class FinishReason { stop, length };

struct Completion {
  std::vector<std::int64_t> ids;  // with the end token where finish == stop
  std::vector<float> logprobs;    // of each id under the distribution it was drawn from (temperature 0: under 1)
  FinishReason finish = FinishReason::length;
};

struct EngineOptions {
  std::int64_t max_rows = 128;  // completions that are decoded side by side

  void visit(SettingsVisitor& v) {
    v.setting("max_rows", max_rows, "Completions that are decoded side by side; memory grows with it.");
  }
};

struct GenerationStats {
  std::int64_t prompt_tokens = 0;
  std::int64_t new_tokens = 0;
  double seconds = 0;
};

// Completes prompts with the model's present weights: nothing is copied, so a trainer's next step is seen at once. The
// prompt and its pictures are computed once for all of its completions; a finished row is given to the next
// completion. A completion's random numbers depend only on its own key, not on its neighbours. On a CPU the
// requests are shared out to as many workers as ATen has threads. Not thread-safe; the model must not be changed during
// generate().
class RolloutEngine {
 public:
  RolloutEngine(models::VisionLanguageModel& model, const EngineOptions& options);

  // For each request its completions, in order.
  std::vector<std::vector<Completion>> generate(const std::vector<GenerationRequest>& requests,
                                                const SamplingOptions& sampling);
  // Called with (request, completion, id) as each token is drawn; for showing text as it comes.
  void on_token(std::function<void(std::int64_t, std::int64_t, std::int64_t)> callback) {
    on_token_ = std::move(callback);
  }
  // Of the latest generate().
  const GenerationStats& stats() const { return stats_; }

 private:
  // Decodes requests in one batch of at most `max_rows` rows.
  std::vector<std::vector<Completion>> generate_together(const std::vector<GenerationRequest>& requests,
                                                         const SamplingOptions& sampling, std::int64_t max_rows,
                                                         GenerationStats& stats);

  models::VisionLanguageModel& model_;
  EngineOptions options_;
  GenerationStats stats_;
  std::function<void(std::int64_t, std::int64_t, std::int64_t)> on_token_;
};

}  // namespace thinkvg::generation
