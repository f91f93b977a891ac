#include "thinkvg/models/export.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <memory>
#include <set>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/models/adapters.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/models/pack.h"

namespace thinkvg::models {
namespace fs = std::filesystem;
namespace {

constexpr const char* kKeep = "keep";
constexpr double kMostDivergence = 0.05;
// Files that this project would write with less than they had.
constexpr const char* kOwnFiles[] = {"preprocessor_config.json", "processor_config.json",
                                     "video_preprocessor_config.json", "generation_config.json"};

std::int64_t bytes_of(const std::string& size) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(size.data(), size.data() + size.size(), number);
  const std::string unit(end, size.data() + size.size());
  const std::map<std::string, std::int64_t> units = {{"KB", 1000}, {"MB", 1'000'000}, {"GB", 1'000'000'000}};
  const auto found = units.find(unit);
  if (error != std::errc() || found == units.end() || number < 1 || number > 1'000'000)
    throw_invalid("shard_size should be a size such as 5GB, 300MB or 800KB, but is '{}'", size);
  return number * found->second;
}

// The weights of a model folder, mapped, not read.
std::vector<at::Tensor> mapped_weights(const fs::path& folder) {
  std::set<std::string> files;
  if (const fs::path index = folder / "model.safetensors.index.json";
      !fs::exists(folder / "model.safetensors") && fs::exists(index)) {
    const Json map = read_json_file(index).value("weight_map", Json::object());
    for (const auto& [name, file] : map.items())
      if (file.is_string()) files.insert(file.get<std::string>());
  } else {
    files.insert("model.safetensors");
  }
  std::vector<at::Tensor> weights;
  for (const std::string& file : files)
    for (auto& [name, tensor] : read_safetensors(folder / file)) weights.push_back(tensor);
  if (weights.empty()) throw_failure("{}: there are no weights", folder.string());
  return weights;
}

std::int64_t memory_available() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  for (std::int64_t kib = 0; file >> name >> kib; file.ignore(100, '\n'))
    if (name == "MemAvailable:") return kib * 1024;
  return -1;
}

// Whether the model is held in float32 however it came: for a merge that is written so, and to compute in at all.
bool widens(const ExportPlan& plan, bool verify) {
  if (plan.loaded_dtype == "float16") return verify || !plan.adapter.empty();
  return !plan.adapter.empty() && plan.written_dtype == "float32";
}

image::Picture pattern() {
  image::Picture picture{.width = 336, .height = 280, .pixels = {}};
  for (std::int64_t y = 0; y < picture.height; ++y)
    for (std::int64_t x = 0; x < picture.width; ++x)
      for (int channel = 0; channel < 3; ++channel)
        picture.pixels.push_back(static_cast<std::uint8_t>((x * y / 97 + 2 * x + y) % 256));
  return picture;
}

// [positions, V] float32
at::Tensor prompt_logits(ModelBundle& bundle, const ExportOptions& options) {
  const at::NoGradGuard no_grad;
  VisionLanguageModel& model = *bundle.model;
  const image::Picture picture = options.image.empty() ? pattern() : image::read_picture(options.image);
  const ProcessedPicture processed = bundle.processor->process(picture);
  const std::vector<ImageGrid>& grids = processed.patches.grids;
  const text::Prompt prompt =
      text::chat_prompt(*bundle.tokenizer, *bundle.chat, "", options.question,
                        {{model.num_image_tokens(grids.front())}, model.special_tokens().image});
  PackBuilder builder;
  builder.add({prompt.ids,
               model.token_positions(prompt.ids, grids).positions,
               prompt.image_rows,
               {model.encode_images(processed.patches)}});
  const Pack pack = builder.build(at::kCPU);
  nn::PackedAttention attention(pack.layout);
  return model.logits(run_pack(model, pack, attention)).to(at::kFloat);
}

LogitsComparison compare(const at::Tensor& before, const at::Tensor& after) {
  const at::Tensor wanted = at::log_softmax(before, -1), got = at::log_softmax(after, -1);
  return {before.size(0), (before - after).abs().max().item<double>(),
          (wanted.exp() * (wanted - got)).sum(-1).mean().item<double>(),
          (before.argmax(-1) == after.argmax(-1)).to(at::kDouble).mean().item<double>()};
}

// Throws where the difference is more than it may be.
void judge(const LogitsComparison& found, const at::Tensor& before, const at::Tensor& after, const ExportPlan& plan) {
  if (!at::isfinite(before).all().item<bool>())
    throw_failure("verify: the model as it came gives logits that are not finite");
  if (!at::isfinite(after).all().item<bool>())
    throw_failure("verify: the exported model gives logits that are not finite");
  const double largest = std::max(1.0, before.abs().max().item<double>());
  const bool same = plan.loaded_dtype == plan.written_dtype;
  if (same && (plan.adapter.empty() || plan.written_dtype == "float32")) {
    const double most = (plan.adapter.empty() ? 1e-5 : 1e-4) * largest;
    if (found.largest_difference > most)
      throw_failure("verify: logits differ by {:.3g}, which is more than {:.3g}", found.largest_difference, most);
  } else if (found.mean_divergence > kMostDivergence) {
    throw_failure("verify: {} changes the model's distributions by {:.3g} nats in the mean, which is more than {}",
                  plan.written_dtype, found.mean_divergence, kMostDivergence);
  }
}

void set_dtype(Json& config, const std::string& name) {
  for (auto& [key, value] : config.items())
    if (value.is_object() && (value.contains("dtype") || value.contains("torch_dtype"))) {
      value.erase("torch_dtype");
      value["dtype"] = name;
    }
  config.erase("torch_dtype");
  config["dtype"] = name;
}

}  // namespace

ExportPlan plan_export(const ExportOptions& options) {
  const auto dtype = dtype_setting(options.dtype, kKeep);
  bytes_of(options.shard_size);
  if (options.out.empty()) throw_invalid("export needs a folder to write");
  if (fs::exists(options.out)) throw_invalid("{} exists already; choose another folder, or remove it", options.out);
  if (!options.image.empty() && !fs::is_regular_file(options.image))
    throw_failure("there is no picture {}", options.image);
  ExportPlan plan;
  plan.base = resolve_model_folder(options.model);
  if (is_adapter_folder(plan.base)) {
    plan.adapter = plan.base;
    plan.base = adapter_base(plan.adapter);
  }
  std::map<at::ScalarType, std::int64_t> by_dtype;
  std::int64_t loaded = 0, largest = 0;
  for (const at::Tensor& tensor : mapped_weights(plan.base)) {
    by_dtype[tensor.scalar_type()] += tensor.numel();
    plan.num_parameters += tensor.numel();
    loaded += static_cast<std::int64_t>(tensor.nbytes());
    largest = std::max(largest, tensor.numel());
    const auto written = dtype && tensor.is_floating_point() ? *dtype : tensor.scalar_type();
    plan.written_bytes += tensor.numel() * static_cast<std::int64_t>(c10::elementSize(written));
  }
  const auto most = std::max_element(by_dtype.begin(), by_dtype.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  plan.loaded_dtype = dtype_name(most->first);
  plan.written_dtype = dtype ? options.dtype : plan.loaded_dtype;
  const std::int64_t wide = 4 * plan.num_parameters;
  if (widens(plan, options.verify)) loaded = std::max(loaded, wide);
  std::int64_t reloaded = 0;
  if (options.verify) reloaded = plan.written_dtype == "float16" ? wide : plan.written_bytes;
  plan.memory_bytes = std::max(loaded, reloaded) + 3 * 4 * largest;  // a tensor on its way, and a merge's change
  plan.available_memory = memory_available();
  fs::path folder = fs::absolute(options.out).parent_path();
  while (!fs::exists(folder) && folder.has_relative_path()) folder = folder.parent_path();
  if (const auto space = fs::space(folder); space.available < static_cast<std::uintmax_t>(plan.written_bytes))
    throw_failure("{} has {} MB left, but the export needs {}", folder.string(), space.available / 1'000'000,
                  plan.written_bytes / 1'000'000);
  return plan;
}

ExportReport export_model(const ExportOptions& options) {
  const ExportPlan plan = plan_export(options);
  const auto in_float = [](bool wide) { return wide ? std::optional(at::kFloat) : std::nullopt; };
  ModelBundle bundle = load_bundle(plan.base, in_float(widens(plan, options.verify)));
  std::unique_ptr<Adapters> adapters;
  if (!plan.adapter.empty()) adapters = std::make_unique<Adapters>(bundle.model, plan.adapter);
  at::Tensor before;
  if (options.verify) before = prompt_logits(bundle, options);
  if (adapters) adapters->merge();
  adapters.reset();

  FolderContent content = bundle_content(bundle);
  content.dtype = dtype_setting(options.dtype, kKeep);
  if (!content.dtype && plan.loaded_dtype == "float16") content.dtype = at::kHalf;
  Json config = Json::parse(content.texts.at("config.json"));
  set_dtype(config, plan.written_dtype);
  content.texts["config.json"] = config.dump(2) + "\n";
  for (const char* name : kOwnFiles)
    if (fs::exists(plan.base / name)) content.texts[name] = read_file(plan.base / name);
  content.max_file_bytes = bytes_of(options.shard_size);

  ExportReport report;
  fs::create_directories(fs::absolute(options.out).parent_path());
  write_folder_atomically(options.out, [&](const fs::path& folder) {
    write_content(content, folder);
    if (options.verify) {
      content = {};
      bundle = {};
      ModelBundle written = load_bundle(folder, in_float(plan.written_dtype == "float16"));
      const at::Tensor after = prompt_logits(written, options);
      report.verified = compare(before, after);
      judge(*report.verified, before, after, plan);
    }
    for (const auto& entry : fs::recursive_directory_iterator(folder))
      if (entry.is_regular_file())
        report.files.emplace_back(entry.path().lexically_relative(folder).string(),
                                  static_cast<std::int64_t>(entry.file_size()));
  });
  std::sort(report.files.begin(), report.files.end());
  return report;
}

}  // namespace thinkvg::models
