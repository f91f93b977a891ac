#include "thinkvg/train/run_folder.h"

#include <algorithm>
#include <fstream>

#include "thinkvg/core/error.h"
#include "thinkvg/core/log.h"
#include "thinkvg/models/bundle.h"

namespace thinkvg::train {
namespace fs = std::filesystem;
namespace {

constexpr const char* kChecksums = "trainer/checksums.json";
constexpr const char* kTrainer = "trainer";
constexpr const char* kState = "trainer/state.json";

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

// Relative paths of all files below a folder, sorted.
std::vector<std::string> files_below(const fs::path& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) files.push_back(entry.path().lexically_relative(folder).generic_string());
  std::sort(files.begin(), files.end());
  return files;
}

fs::path checkpoint_folder(const fs::path& run, std::int64_t step) {
  return run / "checkpoints" / fmt::format("step-{}", step);
}

// checkpoints/best points to the best checkpoint, or is not there. A file system without links does without it.
void link_best(const fs::path& run, std::int64_t best_step) {
  const fs::path link = run / "checkpoints" / "best", temporary = run / "checkpoints" / "best.new";
  std::error_code error;
  if (best_step < 0 || !fs::exists(checkpoint_folder(run, best_step))) {
    fs::remove(link, error);
    return;
  }
  fs::remove(temporary, error);
  fs::create_directory_symlink(checkpoint_folder(run, best_step).filename(), temporary, error);
  if (!error) fs::rename(temporary, link, error);
  if (error)
    spdlog::warn("the best checkpoint is step {}; the link {} could not be made: {}", best_step, link.string(),
                 error.message());
}

struct CheckpointPlace {
  fs::path run;
  std::int64_t step = 0;
  std::int64_t keep_last = 1;
  std::int64_t best_step = -1;
  fs::path shards;  // a folder with files for trainer/ that other processes have written, on the same disk; empty: none
};

void write_checkpoint(const CheckpointPlace& place, const models::FolderContent& content) {
  const fs::path& shards = place.shards;
  write_folder_atomically(checkpoint_folder(place.run, place.step), [&](const fs::path& temporary) {
    models::write_content(content, temporary);
    if (!shards.empty()) {
      for (const std::string& file : files_below(shards)) fs::rename(shards / file, temporary / kTrainer / file);
      fs::remove(shards);
    }
    Json checksums = Json::object();
    for (const std::string& file : files_below(temporary)) checksums[file] = sha256_file(temporary / file);
    write_file_atomically(temporary / kChecksums, checksums.dump(2) + "\n");
  });
  link_best(place.run, place.best_step);
  const std::vector<fs::path> all = models::checkpoints_of(place.run);
  const fs::path best = checkpoint_folder(place.run, place.best_step);
  for (std::size_t i = 0; i + static_cast<std::size_t>(std::max<std::int64_t>(1, place.keep_last)) < all.size(); ++i)
    if (place.best_step < 0 || all[i] != best) fs::remove_all(all[i]);
}

}  // namespace

RunFolder::RunFolder(fs::path folder, bool resume, const RunOptions& options, bool writes)
    : folder_(std::move(folder)), options_(options), writes_(writes) {
  if (!writes_) return;
  if (!resume && fs::exists(folder_ / "metrics.jsonl"))
    throw_invalid("{} already holds a run; give another --out, remove it, or go on with --resume", folder_.string());
  std::error_code error;
  fs::create_directories(folder_ / "checkpoints", error);
  if (!error) fs::create_directories(folder_ / "samples", error);
  if (error) throw_failure("cannot make the run folder {}: {}", folder_.string(), error.message());
}

RunFolder::~RunFolder() {
  if (saving_.valid()) saving_.wait();
}

void RunFolder::write_config(const Json& config) {
  if (writes_) write_file_atomically(folder_ / "config.yaml", to_yaml(config));
}

void RunFolder::write_manifest(const Json& manifest) {
  if (writes_) write_file_atomically(folder_ / "manifest.json", manifest.dump(2) + "\n");
}

void RunFolder::open_logs(std::int64_t step) {
  if (!writes_) return;
  cut_after_step(folder_ / "metrics.jsonl", step);
  for (const auto& entry : fs::directory_iterator(folder_ / "samples"))
    if (entry.path().extension() == ".jsonl") cut_after_step(entry.path(), step);
  metrics_ = std::make_unique<AppendFile>(folder_ / "metrics.jsonl");
  if (options_.tensorboard) events_ = std::make_unique<EventFile>(folder_, step + 1);
}

void RunFolder::log(const Json& metrics) {
  if (!writes_) return;
  metrics_->write_line(metrics.dump());
  if (!events_) return;
  std::vector<std::pair<std::string, double>> scalars;
  for (const auto& [name, value] : metrics.items())
    if (value.is_number() && name != "step") scalars.emplace_back(name, value.get<double>());
  events_->write(metrics.at("step").get<std::int64_t>(), scalars);
}

void RunFolder::log_sample(const Json& sample, const std::string& file) {
  if (!writes_) return;
  std::unique_ptr<AppendFile>& log = samples_[file];
  if (!log) log = std::make_unique<AppendFile>(folder_ / "samples" / file);
  log->write_line(sample.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void RunFolder::save_checkpoint(const models::FolderContent& model, const DistributedAdamW& optimizer,
                                const TrainerState& state, dist::ProcessGroup& group) {
  finish();
  fs::path shards;
  if (optimizer.sharded()) {
    shards = folder_ / "checkpoints" / fmt::format(".shards-step-{}", state.step);
    if (writes_) {
      fs::remove_all(shards);  // of a run that was killed here
      fs::create_directories(shards);
    }
    group.barrier("folder of shards");
    // Other shards hold the same.
    if (group.rank(dist::Scope::replicas) == 0)
      models::write_safetensors(
          optimizer.state(), shards / optimizer_file(group.rank(dist::Scope::shard), group.size(dist::Scope::shard)));
    group.barrier("shards");
  }
  if (!writes_) return;
  models::FolderContent content = model;
  if (shards.empty()) content.tensors[fmt::format("{}/{}", kTrainer, optimizer_file(0, 1))] = optimizer.state();
  content.texts[kState] = Json{{"step", state.step}, {"extra", state.extra}}.dump(2) + "\n";
  const CheckpointPlace place{folder_, state.step, options_.keep_last, state.best_step, shards};
  if (!options_.async_save) return write_checkpoint(place, content);
  saving_ =
      std::async(std::launch::async, [place, copy = models::copy_content(content)] { write_checkpoint(place, copy); });
}

void RunFolder::finish() {
  if (saving_.valid()) saving_.get();
}

fs::path RunFolder::latest_checkpoint() const {
  std::vector<fs::path> all = models::checkpoints_of(folder_);
  for (; !all.empty(); all.pop_back()) {
    const std::string damage = checkpoint_damage(all.back());
    if (damage.empty()) return all.back();
    spdlog::warn("{} is damaged ({}); the checkpoint before it is used", all.back().string(), damage);
  }
  return {};
}

RunFolder::TrainerState RunFolder::load_checkpoint(const fs::path& checkpoint, DistributedAdamW& optimizer) {
  const Json json = read_json_file(checkpoint / kState);
  optimizer.load_state(checkpoint / kTrainer);
  return {json.at("step").get<std::int64_t>(), json.at("extra")};
}

std::string checkpoint_damage(const fs::path& checkpoint) {
  const fs::path file = checkpoint / kChecksums;
  if (!fs::exists(file)) return std::string(kChecksums) + " is missing";
  try {
    const Json checksums = read_json_file(file);
    const auto names = [&](const std::string& beginning) {
      for (const auto& item : checksums.items())
        if (item.key().starts_with(beginning)) return true;
      return false;
    };
    for (const char* needed : {"trainer/optimizer", kState})
      if (!names(needed)) return fmt::format("{} does not name {}", kChecksums, needed);
    for (const auto& [name, expected] : checksums.items()) {
      if (!fs::exists(checkpoint / name)) return name + " is missing";
      if (sha256_file(checkpoint / name) != expected.get<std::string>()) return name + " has another content";
    }
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

}  // namespace thinkvg::train
