#pragma once

// Shape letters: I image tokens, D width, G completions of one prompt.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/generation/sampling.h"
#include "thinkvg/models/pack.h"
#include "thinkvg/models/quantized_language.h"
#include "thinkvg/text/chat.h"
#include "thinkvg/text/token_constraint.h"
#include "thinkvg/text/tokenizer.h"

namespace thinkvg::generation {

// One prompt and how often it is to be completed.
struct GenerationRequest {
  text::Prompt prompt;
  std::vector<models::ImageGrid> grids;       // of its pictures
  std::vector<at::Tensor> image_features;     // [I, D] each
  std::int64_t num_completions = 1;           // G
  std::vector<std::uint64_t> stream;          // key of its random numbers; completion g uses {stream.., g}
  std::vector<std::string> stop = {};         // a completion ends before the first of them; asks for a tokenizer
  std::int64_t num_top_logprobs = 0;          // how many of the likeliest ids are reported with each token
  std::vector<std::int64_t> banned_ids = {};  // never drawn, besides models::banned_ids
  // What the text must obey; where it leaves no id that is not banned, the completion ends.
  std::shared_ptr<const text::TokenConstraint> constraint = nullptr;
};

// stop: an end token, a stop text, or the constraint's end. length: max_new_tokens.
enum class FinishReason { stop, length, cancelled };

using TopLogprobs = std::vector<std::pair<std::int64_t, float>>;  // ids with their log-probabilities, best first

struct Completion {
  std::vector<std::int64_t> ids;  // with the end token, or all tokens of the stop text
  std::vector<float> logprobs;    // of each id under the distribution it was drawn from (temperature 0: under 1)
  FinishReason finish = FinishReason::length;
  std::vector<TopLogprobs> top = {};  // of each id, where the request asks for them
  std::string stop_text = {};         // the stop text that ended it
  // Of the ids, as Tokenizer::decode_stream gives it, cut before the stop text. Empty where the engine has no
  // tokenizer.
  std::string text = {};
};

struct EngineOptions {
  std::int64_t max_rows = 128;  // completions that are decoded side by side
  std::int64_t cache_mb = 0;
  bool prefix_cache = true;
  bool exact = false;
  std::string quantization = "none";

  void visit(SettingsVisitor& v) {
    v.setting("max_rows", max_rows, "Completions that are decoded side by side; memory grows with it.");
    v.setting("cache_mb", cache_mb,
              "Memory for keys and values in MiB; completions wait where it is full. 0: what max_rows completions of "
              "4,096 tokens need, but on a CPU at most a quarter of the memory that is free, on a GPU half.");
    v.setting("prefix_cache", prefix_cache, "Keys and values of equal beginnings, pictures included, are used again.");
    v.setting(
        "exact", exact,
        "Log-probabilities equal the trainer's to the bit, whatever else is in the batch (fp32 on a CPU; slower).");
    v.setting(
        "quantization", quantization,
        "Weights of the decoder in 8 or 4 bits, made when the model is loaded: none, int8 or int4. On a CPU; faster, "
        "but the log-probabilities change, those of int4 clearly.");
  }
  // Throws std::invalid_argument naming the setting.
  void check() const;
  // `quantization` by its name; throws as check() does.
  nn::Quantization weights() const;
};

struct GenerationStats {
  std::int64_t prompt_tokens = 0;  // computed; what the prefix cache had is not counted
  std::int64_t reused_tokens = 0;  // taken from the prefix cache
  std::int64_t new_tokens = 0;
  std::int64_t preemptions = 0;  // completions that gave their pages back for a while because the cache was full
  double seconds = 0;
};

// Completes prompts with the model's present weights: nothing is copied, so a trainer's next step is seen at once. Only
// EngineOptions::quantization makes copies, of the weights that are there when the engine is made, and while the engine
// lives all passes of this model without gradient take them (models::QuantizedLanguage). The
// prompt and its pictures are computed once for all of its completions, which share its pages of the cache; a finished
// completion makes room for the next. A completion's random numbers depend only on its own key, not on its neighbours.
// Where the cache is full, the youngest completions give their pages back and are computed again later. Keys and values
// are kept during one generate() and no longer, so that weights may change between calls. On a CPU the requests are
// shared out to as many workers as ATen has threads where that is faster. Not thread-safe; the model must not be
// changed during generate().
class RolloutEngine {
 public:
  // `tokenizer`, which must outlive the engine: for stop texts and Completion::text; may be null. Throws
  // std::invalid_argument for options that cannot be, or not with this model.
  RolloutEngine(models::VisionLanguageModel& model, const EngineOptions& options,
                const text::Tokenizer* tokenizer = nullptr);

  // For each request its completions, in order. Throws std::invalid_argument for settings or requests that cannot be:
  // a completion that could outgrow the cache, features that do not fit the prompt.
  std::vector<std::vector<Completion>> generate(const std::vector<GenerationRequest>& requests,
                                                const SamplingOptions& sampling);
  // The same with settings of its own for each request.
  std::vector<std::vector<Completion>> generate_each(const std::vector<GenerationRequest>& requests,
                                                     const std::vector<SamplingOptions>& sampling);
  // Called with (request, completion, id) as each token is drawn; for showing text as it comes.
  void on_token(std::function<void(std::int64_t, std::int64_t, std::int64_t)> callback) {
    on_token_ = std::move(callback);
  }
  // Called with (request, completion, result) as each completion ends: from any thread, but one call at a time. For
  // keeping what is done before all of it is.
  void on_finish(std::function<void(std::int64_t, std::int64_t, const Completion&)> callback) {
    on_finish_ = std::move(callback);
  }
  // Of the latest generate().
  const GenerationStats& stats() const { return stats_; }

 private:
  models::VisionLanguageModel& model_;
  EngineOptions options_;
  std::unique_ptr<const models::QuantizedLanguage> quantized_;  // null: the model's own weights
  const text::Tokenizer* tokenizer_;
  GenerationStats stats_;
  std::function<void(std::int64_t, std::int64_t, std::int64_t)> on_token_;
  std::function<void(std::int64_t, std::int64_t, const Completion&)> on_finish_;
};

}  // namespace thinkvg::generation
