#include "thinkvg/train/run_folder.h"

#include <algorithm>
#include <fstream>

#include "thinkvg/core/error.h"

namespace thinkvg::train {
namespace fs = std::filesystem;
namespace {

// Drops the lines of a later step: what a run wrote after the checkpoint that it now goes on from.
void cut_after_step(const fs::path& file, std::int64_t step) {
  if (!fs::exists(file)) return;
  std::ifstream stream(file);
  std::string kept;
  for (std::string line; std::getline(stream, line);) {
    const Json json = Json::parse(line, nullptr, false);
    if (json.is_object() && json.value("step", step + 1) <= step) kept += line + "\n";
  }
  write_file_atomically(file, kept);
}

}  // namespace

RunFolder::RunFolder(fs::path folder, bool resume) : folder_(std::move(folder)) {
  if (!resume && fs::exists(folder_ / "metrics.jsonl"))
    throw_invalid("{} already holds a run; give another --out, remove it, or go on with --resume", folder_.string());
  std::error_code error;
  fs::create_directories(folder_ / "checkpoints", error);
  if (!error) fs::create_directories(folder_ / "samples", error);
  if (error) throw_failure("cannot make the run folder {}: {}", folder_.string(), error.message());
  metrics_ = std::make_unique<AppendFile>(folder_ / "metrics.jsonl");
}

void RunFolder::write_config(const Json& config) { write_file_atomically(folder_ / "config.yaml", to_yaml(config)); }

void RunFolder::write_manifest(const Json& manifest) {
  write_file_atomically(folder_ / "manifest.json", manifest.dump(2) + "\n");
}

void RunFolder::log(const Json& metrics) { metrics_->write_line(metrics.dump()); }

void RunFolder::log_sample(const Json& sample) {
  if (!samples_) samples_ = std::make_unique<AppendFile>(folder_ / "samples" / "completions.jsonl");
  samples_->write_line(sample.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void RunFolder::save_checkpoint(const models::ModelBundle& bundle, const AdamW& optimizer, const TrainerState& state,
                                std::int64_t keep_last) {
  write_folder_atomically(folder_ / "checkpoints" / fmt::format("step-{}", state.step), [&](const fs::path& temporary) {
    models::save_bundle(bundle, temporary);
    fs::create_directories(temporary / "trainer");
    models::write_safetensors(optimizer.state(), temporary / "trainer" / "optimizer.safetensors");
    const Json json = {{"step", state.step}, {"extra", state.extra}};
    write_file_atomically(temporary / "trainer" / "state.json", json.dump(2) + "\n");
  });
  std::vector<fs::path> all = models::checkpoints_of(folder_);
  for (std::size_t i = 0; i + static_cast<std::size_t>(std::max<std::int64_t>(1, keep_last)) < all.size(); ++i)
    fs::remove_all(all[i]);
}

fs::path RunFolder::latest_checkpoint() const {
  const std::vector<fs::path> all = models::checkpoints_of(folder_);
  return all.empty() ? fs::path() : all.back();
}

RunFolder::TrainerState RunFolder::load_checkpoint(const fs::path& checkpoint, AdamW& optimizer) {
  const Json json = read_json_file(checkpoint / "trainer" / "state.json");
  optimizer.load_state(models::read_safetensors(checkpoint / "trainer" / "optimizer.safetensors"));
  TrainerState state{json.at("step").get<std::int64_t>(), json.at("extra")};
  metrics_.reset();
  samples_.reset();
  cut_after_step(folder_ / "metrics.jsonl", state.step);
  cut_after_step(folder_ / "samples" / "completions.jsonl", state.step);
  metrics_ = std::make_unique<AppendFile>(folder_ / "metrics.jsonl");
  return state;
}

}  // namespace thinkvg::train
