// No tensors here: `thinkvg check` plans without loading LibTorch.
#include "thinkvg/train/memory_plan.h"

#include <algorithm>
#include <initializer_list>
#include <numeric>

#include "thinkvg/core/error.h"

namespace thinkvg::train {
namespace {

constexpr std::int64_t kProgram = std::int64_t{400} << 20;        // LibTorch and what it allocates by itself
constexpr std::int64_t kDeviceContext = std::int64_t{900} << 20;  // CUDA context, kernels, workspaces
// nn::head_token_stats: as many rows as make so many logits.
constexpr std::int64_t kLogitsAtATime = std::int64_t{1} << 26;
constexpr std::int64_t kPageTokens = 16;  // nn::PagedKvCache

const Json* find(const Json& object, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const auto found = object.find(key);
    if (found != object.end() && found->is_number()) return &*found;
  }
  return nullptr;
}

std::int64_t number(const Json& object, const char* section, std::initializer_list<const char*> keys) {
  const Json* found = find(object, keys);
  if (found == nullptr) throw_failure("config.json: {} has no {}", section, *keys.begin());
  return found->get<std::int64_t>();
}

std::int64_t number_or(const Json& object, std::initializer_list<const char*> keys, std::int64_t fallback) {
  const Json* found = find(object, keys);
  return found == nullptr ? fallback : found->get<std::int64_t>();
}

StackNumbers read_language(const Json& text) {
  StackNumbers stack;
  const char* section = "the language model";
  stack.num_layers = number(text, section, {"num_hidden_layers"});
  stack.width = number(text, section, {"hidden_size"});
  stack.inner_width = number(text, section, {"intermediate_size"});
  stack.num_heads = number(text, section, {"num_attention_heads"});
  stack.num_kv_heads = number_or(text, {"num_key_value_heads"}, stack.num_heads);
  stack.head_width = number_or(text, {"head_dim"}, stack.width / std::max<std::int64_t>(1, stack.num_heads));
  return stack;
}

StackNumbers read_vision(const Json& vision) {
  StackNumbers stack;
  const char* section = "vision_config";
  stack.num_layers = number(vision, section, {"depth", "num_hidden_layers"});
  // Qwen2-VL calls the tower's width embed_dim, and the decoder's hidden_size.
  stack.width = number(vision, section, {"embed_dim", "hidden_size"});
  stack.num_heads = number(vision, section, {"num_heads", "num_attention_heads"});
  stack.num_kv_heads = stack.num_heads;
  stack.head_width = stack.width / std::max<std::int64_t>(1, stack.num_heads);
  const auto ratio = vision.find("mlp_ratio");
  const double times = ratio != vision.end() && ratio->is_number() ? ratio->get<double>() : 4.0;
  stack.inner_width =
      number_or(vision, {"intermediate_size"}, static_cast<std::int64_t>(times * static_cast<double>(stack.width)));
  const std::string type = vision.value("model_type", "");
  stack.gated = type.starts_with("qwen2_5") || vision.contains("fullatt_block_indexes");
  return stack;
}

std::int64_t sum_of(const std::vector<MemoryItem>& items) {
  return std::accumulate(items.begin(), items.end(), std::int64_t{0},
                         [](std::int64_t sum, const MemoryItem& item) { return sum + item.bytes; });
}

// Tokens that the engine's pages of keys and values have room for. On an accelerator all pages are there from the
// beginning, each completion's with those of its prompt (generation::RolloutEngine); of a CPU's only those in use
// count: completions share their prompt's.
std::int64_t cache_tokens(const MemorySettings::Rollout& rollout, bool on_accelerator) {
  const auto pages = [](std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; };
  const std::int64_t a_row =
      on_accelerator ? pages(rollout.prompt_tokens + rollout.new_tokens) + 2 : pages(rollout.new_tokens) + 1;
  return (rollout.num_prompts * pages(rollout.prompt_tokens) + rollout.num_rows * a_row) * kPageTokens;
}

void add(std::vector<MemoryItem>& items, std::string name, std::int64_t bytes, std::string meaning) {
  if (bytes > 0) items.push_back({std::move(name), bytes, std::move(meaning)});
}

}  // namespace

ModelNumbers read_model_numbers(const Json& config) {
  if (!config.is_object() || !config.contains("vision_config") || !config.at("vision_config").is_object())
    throw_failure("config.json: vision_config is missing");
  const bool nested = config.contains("text_config") && config.at("text_config").is_object();
  const Json& text = nested ? config.at("text_config") : config;
  const Json& vision = config.at("vision_config");
  ModelNumbers model;
  model.language = read_language(text);
  model.vision = read_vision(vision);
  model.vocab_size = number(text, "the language model", {"vocab_size"});
  for (const Json* object : {&text, &config})
    if (const auto tied = object->find("tie_word_embeddings"); tied != object->end() && tied->is_boolean())
      model.tied = tied->get<bool>();
  // Qwen's default; other towers have no such number.
  const std::int64_t merge = number_or(vision, {"spatial_merge_size"}, vision.contains("depth") ? 2 : 0);
  const std::int64_t side =
      number_or(vision, {"image_size"}, 0) / std::max<std::int64_t>(1, number_or(vision, {"patch_size"}, 14));
  const std::int64_t tokens = number_or(config, {"mm_tokens_per_image"}, 0);
  model.patches_a_token = merge > 0 ? merge * merge : tokens > 0 ? std::max<std::int64_t>(1, side * side / tokens) : 1;
  return model;
}

std::int64_t kept_numbers(const StackNumbers& stack, const MemorySettings& settings, bool trained) {
  const std::int64_t query = stack.num_heads * stack.head_width, key = stack.num_kv_heads * stack.head_width;
  std::int64_t kept = 2 * stack.width;                                    // what enters the two norms
  kept += 2 * query + 2 * key;                                            // query, key, value, what attention gives
  kept += (stack.gated ? 2 : 1) * stack.inner_width;                      // what enters the activation
  if (stack.gated && settings.on_accelerator) kept += stack.inner_width;  // what it gives, where it is not fused
  if (trained) kept += 2 * stack.width + stack.inner_width;               // what enters the matrices
  if (trained && settings.adapter_rank > 0) kept += 7 * settings.adapter_rank;
  // Dropped inputs, and what was dropped.
  if (trained && settings.adapter_rank > 0 && settings.adapter_dropout)
    kept += 2 * (5 * stack.width + query + stack.inner_width);
  return kept;
}

std::int64_t MemoryPlan::device_bytes() const {
  return sum_of(always) + (rollout_overlaps ? sum_of(pass) + sum_of(rollout) : std::max(sum_of(pass), sum_of(rollout)));
}

std::int64_t MemoryPlan::host_bytes() const { return sum_of(host); }

MemoryPlan plan_memory(const MemorySettings& s) {
  const std::int64_t bytes = s.bytes_a_weight;
  const std::int64_t trained_share = s.num_trained;
  MemoryPlan plan;
  const std::int64_t split = s.parameter_shards > 1 ? s.split.total() : 0;
  add(plan.always, "weights", (s.num_parameters - split + split / s.parameter_shards) * bytes,
      fmt::format("{} parameters{}", s.num_parameters,
                  split > 0 ? fmt::format(", {} of them split {} ways", split, s.parameter_shards) : ""));
  if (bytes == 2) add(plan.always, "fp32 masters", 4 * trained_share / s.optimizer_shards, "of the trained weights");
  add(plan.always, "optimizer", 8 * trained_share / s.optimizer_shards, "two moments in fp32");
  if (s.rollout && s.rollout->reference)
    add(plan.always, "reference", s.num_parameters * bytes, "the starting model, for the KL");
  if (s.on_accelerator) add(plan.always, "device context", kDeviceContext, "CUDA, kernels, workspaces");

  // A pass, in each worker. Its activations go while its gradients come.
  const ModelNumbers& m = s.model;
  const std::int64_t patches = s.pass_image_tokens * m.patches_a_token;
  const std::int64_t decoder_layer = kept_numbers(m.language, s, s.trains_language) * s.pass_tokens * bytes;
  // A tower's value is a view of the query, key and value that one matrix gives: they stay, too.
  const std::int64_t tower_layer =
      s.trains_vision ? (kept_numbers(m.vision, s, true) + 2 * m.vision.width) * patches * bytes : 0;
  std::int64_t kept = 0, layer = std::max(decoder_layer, tower_layer);
  if (s.gradient_checkpointing)
    kept = (m.language.num_layers * s.pass_tokens * m.language.width +
            (s.trains_vision ? m.vision.num_layers * patches * m.vision.width : 0)) *
           bytes;
  else
    kept = m.language.num_layers * decoder_layer + m.vision.num_layers * tower_layer;
  // Gradients of a layer's inner rows, while it is passed backwards.
  layer += 2 * (m.language.inner_width + m.language.width) * s.pass_tokens * bytes;
  // Of a product in bf16 a CPU holds both sides' rows in fp32, forwards and backwards (nn/linear.h).
  const bool widens = bytes == 2 && !s.on_accelerator;
  const std::int64_t wide = widens ? 4 * (m.language.inner_width + m.language.width) * s.pass_tokens : 0;
  layer += wide;
  kept += 3 * s.pass_tokens * m.language.width * bytes;  // embeddings, and the last norm
  const std::int64_t chunk =
      std::min(std::max<std::int64_t>(1, s.pass_targets),
               std::clamp<std::int64_t>(kLogitsAtATime / std::max<std::int64_t>(1, m.vocab_size), 64, 2048));
  const std::int64_t table = m.vocab_size * m.language.width;
  std::int64_t head = 2 * chunk * m.vocab_size * bytes + 2 * s.pass_targets * m.language.width * bytes;
  if (widens) head += 4 * chunk * m.vocab_size;
  if (s.trains_head) head += 4 * table;
  // Of one pass: whole, unless parameters are split. What is sent is collected in fp32; of blocks one comes, one goes.
  const std::int64_t outside = s.split.trained_outside, block = std::min(s.split.largest_block, trained_share);
  const std::int64_t gradients = split > 0 ? 4 * (outside + std::max(outside, 3 * block)) : trained_share * bytes;
  const std::int64_t last = gradients + (s.trains_head ? table * bytes : 0);
  const std::int64_t begins = kept + head;                                        // at the head
  const std::int64_t between = kept + (s.gradient_checkpointing ? layer : wide);  // a layer is computed again
  const std::int64_t ends = last + layer;                                         // at the first layer
  const std::int64_t one_pass = std::max({begins, between, ends});
  const std::int64_t sums = 4 * trained_share / s.gradient_shards * s.num_workers;
  // With one pass a worker its gradients become the sums.
  const bool sums_before = s.passes_a_step > s.num_workers || bytes != 4;
  if (sums_before) add(plan.pass, "gradients", sums, "fp32 sums over the passes of a step, one set a worker");
  add(plan.pass, "activations", kept * s.num_workers,
      fmt::format("of {} tokens a pass{}{}", s.pass_tokens,
                  s.num_workers > 1 ? fmt::format(", {} passes side by side", s.num_workers) : "",
                  s.gradient_checkpointing ? ", each layer's input alone" : ""));
  add(plan.pass, "head", std::min(head, one_pass - std::min(one_pass, kept)) * s.num_workers,
      fmt::format("{} of {} logits at a time", chunk, s.pass_targets));
  const std::int64_t rest = one_pass - kept - std::min(head, one_pass - std::min(one_pass, kept));
  add(plan.pass, sums_before ? "backward" : "gradients", rest * s.num_workers,
      "gradients of a pass, beyond the memory that its activations give back");
  if (split > 0)
    add(plan.pass, "fetched weights", (s.split.outside + 2 * s.split.largest_block) * bytes,
        "of a layer, of the next one, and of what is no layer");
  add(plan.pass, "buckets", (s.optimizer_shards > 1 ? 2 : 1) * s.bucket_bytes, "gradients that are sent and received");

  if (split > 0 && (s.rollout || s.evaluates)) {
    const std::int64_t some = s.split.outside + s.split.in_tower + 2 * s.split.largest_block;
    add(plan.rollout, "fetched weights", (s.fetches_by_layer ? std::min(some, split) : split) * bytes,
        s.fetches_by_layer ? "two layers, and all that is none (dist.rollout_weights by_layer)" : "the whole model");
  }
  if (s.rollout) {
    plan.rollout_overlaps = s.rollout->overlaps;
    const std::int64_t a_token = 2 * m.language.num_layers * m.language.num_kv_heads * m.language.head_width * bytes;
    const std::int64_t needed = cache_tokens(*s.rollout, s.on_accelerator) * a_token, limit = s.rollout->cache_bytes;
    add(plan.rollout, "KV cache", limit > 0 ? std::min(needed, limit) : needed,
        fmt::format("{} completions of at most {} tokens{}", s.rollout->num_rows, s.rollout->new_tokens,
                    limit > 0 && limit < needed ? "; more wait for room" : ""));
    add(plan.rollout, "prefill",
        decoder_layer / std::max<std::int64_t>(1, s.pass_tokens) * s.rollout->prompt_tokens * s.num_workers,
        "one layer of a prompt");
    add(plan.rollout, "logits", s.rollout->num_rows * m.vocab_size * 2 * 4, "of one token a completion, in fp32");
  }

  add(plan.host, "program", kProgram, "LibTorch and its libraries");
  add(plan.host, "pictures", s.picture_cache_bytes, "kept for the next pass, at most (run.picture_cache_mb)");
  if (s.async_save)
    add(plan.host, "checkpoint", s.num_parameters * bytes + (8 + (bytes == 2 ? 4 : 0)) * trained_share,
        "a copy that is written while training goes on (run.async_save)");
  if (split > 0) add(plan.host, "whole weights", split * bytes, "of rank 0, while it writes a checkpoint");
  return plan;
}

std::vector<std::string> memory_advice(const MemoryLevers& levers) {
  std::vector<std::string> advice;
  if (!levers.checkpointing)
    advice.emplace_back("gradient_checkpointing true: keeps one tensor a layer instead of a dozen");
  if (levers.micro_batch_tokens > 512)
    advice.push_back(
        fmt::format("run.micro_batch_tokens below {}: smaller passes, the same gradient", levers.micro_batch_tokens));
  if (levers.reinforcement && levers.max_rows > 8)
    advice.push_back(fmt::format("engine.max_rows below {}: fewer completions side by side", levers.max_rows));
  if (levers.reinforcement)
    advice.push_back(fmt::format("engine.cache_mb {}: completions wait where keys and values have no room",
                                 levers.cache_mb > 0 ? fmt::format("below {}", levers.cache_mb) : "2048, or less"));
  if (!levers.bfloat16) advice.emplace_back("dtype bfloat16: half the weights and activations");
  if (!levers.adapters)
    advice.emplace_back("lora.rank 16: adapters alone have gradients and optimizer state, 16 bytes a weight less");
  if (levers.reference) advice.emplace_back("beta 0, or lora.rank above 0: no second copy of the weights");
  if (levers.async_save) advice.emplace_back("run.async_save false: no copy of weights and optimizer for checkpoints");
  advice.emplace_back("smaller pictures (max_pixels in the model's preprocessor_config.json)");
  return advice;
}

std::string format_bytes(std::int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= std::int64_t{1} << 30) return fmt::format("{:.1f} GiB", value / (1 << 30));
  if (bytes >= std::int64_t{1} << 20) return fmt::format("{:.1f} MiB", value / (1 << 20));
  return fmt::format("{:.1f} KiB", value / 1024);
}

}  // namespace thinkvg::train
