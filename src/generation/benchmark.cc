#include "thinkvg/generation/benchmark.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>

#include "thinkvg/core/error.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/random.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/models/pack.h"
#include "thinkvg/nn/head_stats.h"
#include "thinkvg/nn/workers.h"

namespace thinkvg::generation {
namespace {

constexpr double kGiga = 1e9;

// The device has ended what it was asked for.
double seconds_of(at::Device device, const std::function<void()>& action) {
  nn::wait_for(device);
  const auto start = std::chrono::steady_clock::now();
  action();
  nn::wait_for(device);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<double> repeated(at::Device device, std::int64_t repeats, const std::function<void()>& action) {
  action();
  std::vector<double> seconds;
  for (std::int64_t i = 0; i < repeats; ++i) seconds.push_back(seconds_of(device, action));
  return seconds;
}

double fastest(const std::vector<double>& seconds) { return *std::min_element(seconds.begin(), seconds.end()); }

double middle(std::vector<double> seconds) {
  const auto place = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), place, seconds.end());
  return *place;
}

MachineSpeed machine_speed(at::Device device, at::ScalarType dtype) {
  MachineSpeed machine;
  double load = 0;
  if (getloadavg(&load, 1) == 1) machine.load = load;
  machine.name = make_manifest("bench", 0, {})["machine"]["cpu"].get<std::string>();
  machine.device = device.str();
  machine.num_threads = at::get_num_threads();
  // Four times what a large last-level cache holds.
  const at::Tensor memory = at::ones({std::int64_t{256} << 20}, device);
  machine.gigabytes_per_s =
      static_cast<double>(memory.nbytes()) / kGiga / fastest(repeated(device, 3, [&] { memory.sum().item<float>(); }));
  const std::int64_t side = device.is_cpu() ? 1536 : 8192;
  const at::Tensor a = at::randn({side, side}).to(device, dtype), b = at::randn({side, side}).to(device, dtype);
  const auto cube = static_cast<double>(side) * static_cast<double>(side) * static_cast<double>(side);
  machine.gigaflops_per_s = 2.0 * cube / kGiga / fastest(repeated(device, 5, [&] { at::mm(a, b); }));
  return machine;
}

// What one token costs.
struct Costs {
  double weight_bytes = 0;     // read once a step
  double kv_bytes = 0;         // of one token, over all layers
  double flops = 0;            // of one token without the head
  double head_flops = 0;       // of one row of logits
  double attention_flops = 0;  // of one token for each that it sees
};

class Benchmark {
 public:
  explicit Benchmark(const BenchmarkOptions& options) : options_(options) {
    options.check();
    if (options.num_threads > 0) at::set_num_threads(static_cast<int>(options.num_threads));
    const std::filesystem::path folder = models::resolve_model_folder(options.model);
    model_ =
        models::load_bundle(folder, models::dtype_setting(options.dtype), nn::device_setting(options.device)).model;
    device_ = model_->output_weight().device();
    for (const std::int64_t id : models::banned_ids(model_->special_tokens())) unusable_.push_back(id);
    for (const std::int64_t id : model_->special_tokens().end) unusable_.push_back(id);
    result_.model = folder.string();
    result_.dtype = models::dtype_name(model_->output_weight().scalar_type());
    measure_costs();
  }

  BenchmarkResult run() {
    {
      const at::NoGradGuard no_grad;
      result_.machine = machine_speed(device_, model_->output_weight().scalar_type());
      prefill();
      for (const std::int64_t batch : options_.batch_sizes) decode(batch);
      rollout();
    }
    if (options_.train_tokens > 0) train();
    return std::move(result_);
  }

 private:
  void measure_costs() {
    const at::Tensor& head = model_->output_weight();
    double weights = 0, query_width = 0;
    for (const auto& item : model_->named_parameters()) {
      const at::Tensor& parameter = item.value();
      if (model_->part_of(item.key()) != models::ModelPart::language) continue;
      result_.num_parameters += parameter.numel();
      if (item.key().ends_with("o_proj.weight")) query_width = static_cast<double>(parameter.size(1));
      // Of the embedding table a token reads one row; the head is counted apart.
      if (parameter.is_same(head) || parameter.size(0) == model_->vocab_size()) continue;
      weights += static_cast<double>(parameter.numel());
    }
    const auto bytes = static_cast<double>(head.element_size());
    costs_.weight_bytes = weights * bytes + static_cast<double>(head.nbytes());
    costs_.flops = 2 * weights;
    costs_.head_flops = 2 * static_cast<double>(head.numel());
    const auto layers = static_cast<double>(model_->num_layers());
    costs_.kv_bytes = 2 * layers * static_cast<double>(model_->num_kv_heads() * model_->head_dim()) * bytes;
    costs_.attention_flops = 4 * layers * query_width;
  }

  std::vector<std::int64_t> prompt(std::uint64_t number) const {
    RandomStream random({hash_key("bench"), number});
    std::vector<std::int64_t> ids;
    while (std::ssize(ids) < options_.prompt_tokens) {
      const auto id = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(model_->vocab_size())));
      if (std::find(unusable_.begin(), unusable_.end(), id) == unusable_.end()) ids.push_back(id);
    }
    return ids;
  }

  std::vector<GenerationRequest> requests(std::int64_t count, std::int64_t completions) const {
    std::vector<GenerationRequest> list(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < list.size(); ++i) {
      list[i].prompt.ids = prompt(i);
      list[i].num_completions = completions;
      list[i].stream = {i};
    }
    return list;
  }

  double least(double bytes, double flops) const {
    return std::max(bytes / result_.machine.gigabytes_per_s, flops / result_.machine.gigaflops_per_s) / kGiga;
  }

  std::vector<double> times(const std::vector<GenerationRequest>& work, std::int64_t new_tokens, double temperature) {
    RolloutEngine engine(*model_, options_.engine);
    const SamplingOptions sampling{
        .max_new_tokens = new_tokens, .temperature = temperature, .min_new_tokens = new_tokens};
    return repeated(device_, options_.repeats, [&] { engine.generate(work, sampling); });
  }

  double prompt_flops(double count) const {
    const auto length = static_cast<double>(options_.prompt_tokens);
    return count * (length * costs_.flops + costs_.head_flops + costs_.attention_flops * length * length / 2);
  }

  // Seconds that decoding asks for: each step reads the weights once and what each row has so far.
  double least_decode(double rows, double distinct_prompts) const {
    const auto length = static_cast<double>(options_.prompt_tokens);
    double seconds = 0;
    for (std::int64_t step = 1; step < options_.new_tokens; ++step) {
      const auto own = static_cast<double>(step);
      seconds += least(costs_.weight_bytes + costs_.kv_bytes * (distinct_prompts * length + rows * own),
                       rows * (costs_.flops + costs_.head_flops + costs_.attention_flops * (length + own)));
    }
    return seconds;
  }

  void prefill() {
    BenchmarkRow row{.name = "prefill", .num_tokens = static_cast<double>(options_.prompt_tokens)};
    row.seconds = times(requests(1, 1), 1, 0);
    row.least_seconds = least(costs_.weight_bytes, prompt_flops(1));
    result_.rows.push_back(std::move(row));
  }

  void decode(std::int64_t batch) {
    const auto work = requests(batch, 1);
    const auto rows = static_cast<double>(batch);
    BenchmarkRow row{.name = "decode", .batch = batch};
    row.num_tokens = rows * static_cast<double>(options_.new_tokens - 1);
    const double first = fastest(times(work, 1, 0));
    row.seconds = times(work, options_.new_tokens, 0);
    for (double& seconds : row.seconds) seconds = std::max(seconds - first, 1e-9);
    row.least_seconds = least_decode(rows, rows);
    result_.rows.push_back(std::move(row));
  }

  void rollout() {
    const auto prompts = static_cast<double>(options_.num_prompts);
    BenchmarkRow row{.name = "rollout", .batch = options_.num_prompts * options_.group_size};
    row.num_tokens = static_cast<double>(row.batch * options_.new_tokens);
    row.seconds = times(requests(options_.num_prompts, options_.group_size), options_.new_tokens, 1);
    row.least_seconds =
        least(costs_.weight_bytes, prompt_flops(prompts)) + least_decode(static_cast<double>(row.batch), prompts);
    result_.rows.push_back(std::move(row));
  }

  void train() {
    models::NamedTensors language;
    std::vector<at::Tensor> inputs;
    for (auto& item : model_->named_parameters()) {
      const bool trained = model_->part_of(item.key()) == models::ModelPart::language;
      item.value().set_requires_grad(trained);
      if (trained) inputs.push_back(item.value());
    }
    const std::int64_t count = std::max<std::int64_t>(1, options_.train_tokens / options_.prompt_tokens);
    const std::int64_t passes = device_.is_cpu() ? std::min(nn::num_workers(), count) : 1;
    const auto length = static_cast<double>(options_.prompt_tokens);
    BenchmarkRow row{.name = "training pass", .batch = count};
    row.num_tokens = static_cast<double>(count) * length;
    row.seconds = repeated(device_, options_.repeats, [&] {
      nn::run_on_workers(passes, [&](std::int64_t pass) {
        models::PackBuilder packer;
        std::vector<std::int64_t> targets;
        for (std::int64_t i = pass; i < count; i += passes) {
          const std::vector<std::int64_t> ids = prompt(static_cast<std::uint64_t>(i));
          packer.add({ids, models::text_positions(0, std::ssize(ids)), {}, {}, -1});
          targets.insert(targets.end(), ids.begin() + 1, ids.end());
          targets.push_back(ids.front());
        }
        const models::Pack pack = packer.build(device_);
        nn::PackedAttention attention(pack.layout);
        const at::Tensor hidden = models::run_pack(*model_, pack, attention);
        const at::Tensor loss =
            nn::head_token_stats(hidden, model_->output_weight(), at::tensor(targets, at::kLong).to(device_), {})
                .logprob.mean();
        torch::autograd::grad({loss}, inputs, {}, std::nullopt, false, /*allow_unused=*/true);
      });
    });
    row.least_seconds =
        least(0, 3 * row.num_tokens * (costs_.flops + costs_.head_flops + costs_.attention_flops * length / 2));
    result_.rows.push_back(std::move(row));
  }

  const BenchmarkOptions& options_;
  std::shared_ptr<models::VisionLanguageModel> model_;
  at::Device device_ = at::kCPU;
  std::vector<std::int64_t> unusable_;
  Costs costs_;
  BenchmarkResult result_;
};

std::string full_name(const BenchmarkRow& row) {
  return row.name == "prefill" ? row.name : fmt::format("{}, {} side by side", row.name, row.batch);
}

}  // namespace

void BenchmarkOptions::check() const {
  models::dtype_setting(dtype);
  if (prompt_tokens < 2 || new_tokens < 2)
    throw_invalid("prompt_tokens and new_tokens must be at least 2, but are {} and {}", prompt_tokens, new_tokens);
  if (num_prompts < 1 || group_size < 1 || repeats < 1)
    throw_invalid("num_prompts, group_size and repeats must be at least 1, but are {}, {} and {}", num_prompts,
                  group_size, repeats);
  if (train_tokens < 0) throw_invalid("train_tokens must be 0 or more, but is {}", train_tokens);
  for (const std::int64_t batch : batch_sizes)
    if (batch < 1) throw_invalid("batch_sizes must be at least 1, but one is {}", batch);
  engine.check();
}

double BenchmarkRow::best() const { return num_tokens / fastest(seconds); }
double BenchmarkRow::median() const { return num_tokens / middle(seconds); }
double BenchmarkRow::share_of_limit() const { return least_seconds / fastest(seconds); }

BenchmarkResult run_benchmark(const BenchmarkOptions& options) { return Benchmark(options).run(); }

std::string benchmark_table(const BenchmarkResult& result) {
  const MachineSpeed& machine = result.machine;
  std::string text = fmt::format(
      "machine: {}, {} threads, load {:.2f}; {} reads {:.1f} GB/s, multiplies {:.0f} GFLOP/s in {}\n"
      "model: {}, {:.3g} million parameters of the language model, {}\n\n{:34} {:>12} {:>12} {:>12}\n",
      machine.name, machine.num_threads, machine.load, machine.device, machine.gigabytes_per_s, machine.gigaflops_per_s,
      result.dtype, result.model, static_cast<double>(result.num_parameters) / 1e6, result.dtype, "", "tokens/s",
      "median", "of the limit");
  text += std::string(73, '-') + "\n";
  for (const BenchmarkRow& row : result.rows)
    text += fmt::format("{:34} {:>12.1f} {:>12.1f} {:>10.0f} %\n", full_name(row), row.best(), row.median(),
                        100 * row.share_of_limit());
  return text;
}

Json benchmark_json(const BenchmarkResult& result) {
  Json rows = Json::array();
  for (const BenchmarkRow& row : result.rows)
    rows.push_back({{"name", row.name},
                    {"batch", row.batch},
                    {"num_tokens", row.num_tokens},
                    {"seconds", row.seconds},
                    {"tokens_per_second", row.best()},
                    {"tokens_per_second_median", row.median()},
                    {"least_seconds", row.least_seconds},
                    {"share_of_limit", row.share_of_limit()}});
  return {{"machine",
           {{"cpu", result.machine.name},
            {"device", result.machine.device},
            {"num_threads", result.machine.num_threads},
            {"load", result.machine.load},
            {"gigabytes_per_second", result.machine.gigabytes_per_s},
            {"gigaflops_per_second", result.machine.gigaflops_per_s}}},
          {"model", result.model},
          {"dtype", result.dtype},
          {"num_parameters", result.num_parameters},
          {"rows", rows}};
}

}  // namespace thinkvg::generation
