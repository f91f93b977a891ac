#include <spdlog/fmt/fmt.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <unordered_map>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/data/dataset.h"
#include "thinkvg/data/image_size.h"
#include "thinkvg/data/images.h"
#include "thinkvg/eval/metrics.h"
#include "tools/commands.h"

namespace thinkvg::tools {
namespace {

struct ScoreOptions {
  std::string predictions;
  std::string data;
  std::string images;
  std::string frame;
  bool json = false;
  std::string out;
  eval::MetricOptions metrics;

  void visit(SettingsVisitor& v) {
    v.setting("predictions", predictions, "JSON lines {\"id\": .., \"response\": ..}, one per question.");
    v.setting("data", data, "The data set with the reference answers and boxes.");
    v.setting("images", images,
              "Image root; only needed where --frame cannot be converted without the pictures' sizes.");
    v.setting("frame", frame,
              "Frame of the predicted boxes: original, letterbox-N, stretch-N, stretch-WxH, unit, hundred, thousand; "
              "empty: the reference's own.");
    v.setting("json", json, "Print one JSON document instead of a table.");
    v.setting("out", out, "Folder for scores.json and questions.jsonl (one line per question).");
    metrics.visit(v);
  }
};

using Predictions = std::unordered_map<std::string, std::string>;  // response by sample id

std::string id_text(const Json& id, const std::string& place) {
  if (id.is_string()) return id.get<std::string>();
  if (id.is_number_integer()) return std::to_string(id.get<std::int64_t>());
  throw_failure("{}: \"id\" must be text or a whole number, but is {}", place, id.dump());
}

Predictions read_predictions(const std::string& file) {
  const std::string content = read_file(file);
  Predictions predictions;
  std::int64_t line_number = 0;
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("{} line {}", file, line_number);
    const Json row = Json::parse(line, nullptr, false);
    if (row.is_discarded() || !row.is_object()) {
      throw_failure("{}: expected an object {{\"id\": .., \"response\": ..}}, but found: {:.80}", place, line);
    }
    if (!row.contains("id")) throw_failure("{}: \"id\" is missing", place);
    const std::string id = id_text(row["id"], place);
    if (!row.contains("response") || !row["response"].is_string()) {
      throw_failure("{}: \"response\" of id '{}' must be text", place, id);
    }
    if (!predictions.emplace(id, row["response"].get<std::string>()).second) {
      throw_failure("{}: id '{}' came before; each question takes one response", place, id);
    }
  }
  if (predictions.empty()) throw_failure("{} holds no predictions", file);
  return predictions;
}

// The geometry of a sample's picture, read from its header only where the conversion of boxes depends on it.
class GeometrySource {
 public:
  explicit GeometrySource(const std::string& image_root) {
    if (!image_root.empty()) finder_.emplace(image_root);
  }

  grounding::ImageGeometry geometry_of(const data::Sample& sample, const grounding::BoxFrame& frame) {
    const bool needed = grounding::conversion_needs_picture(frame, sample.frame) ||
                        std::any_of(sample.regions.begin(), sample.regions.end(), [&](const auto& region) {
                          return grounding::conversion_needs_picture(region.box.frame, sample.frame);
                        });
    if (!needed) return grounding::ImageGeometry({1, 1});
    if (!finder_) {
      throw_invalid(
          "boxes in the frame '{}' cannot be compared with references in '{}' without the pictures' sizes; name the "
          "image root with --images",
          frame.name(), sample.frame.name());
    }
    const auto known = sizes_.find(sample.image);
    if (known != sizes_.end()) return grounding::ImageGeometry(known->second);
    const grounding::ImageSize size = data::read_image_size(finder_->require(sample));
    sizes_.emplace(sample.image, size);
    return grounding::ImageGeometry(size);
  }

 private:
  std::optional<data::ImageFinder> finder_;
  std::unordered_map<std::string, grounding::ImageSize> sizes_;
};

std::string first_ids(const std::vector<std::string>& ids) {
  constexpr std::size_t kShown = 5;
  const std::vector<std::string> shown(ids.begin(),
                                       ids.begin() + static_cast<std::ptrdiff_t>(std::min(kShown, ids.size())));
  return fmt::format("{}{}", fmt::join(shown, ", "), ids.size() > kShown ? ", .." : "");
}

void require_known_ids(const Predictions& predictions, const std::vector<data::Sample>& samples,
                       const ScoreOptions& options) {
  std::unordered_map<std::string_view, int> known;
  for (const data::Sample& sample : samples) known[sample.id] = 1;
  std::vector<std::string> unknown;
  for (const auto& [id, response] : predictions) {
    if (!known.contains(id)) unknown.push_back(id);
  }
  if (unknown.empty()) return;
  std::sort(unknown.begin(), unknown.end());
  throw_failure("{} of {} ids in {} are not in {}: {}; its ids look like '{}'", unknown.size(), predictions.size(),
                options.predictions, options.data, first_ids(unknown), samples.empty() ? "" : samples.front().id);
}

std::vector<data::Sample> read_samples(const data::Dataset& dataset) {
  std::vector<data::Sample> samples;
  samples.reserve(static_cast<std::size_t>(dataset.size()));
  for (std::int64_t i = 0; i < dataset.size(); ++i) samples.push_back(dataset.get(i));
  return samples;
}

}  // namespace

int run_score(const Arguments& arguments) {
  const auto names_rollouts = [](const std::string& a) { return a == "--rollouts" || a.starts_with("--rollouts="); };
  if (std::any_of(arguments.begin(), arguments.end(), names_rollouts)) return run_score_rollouts(arguments);
  ScoreOptions options;
  if (!parse_options("score", "A-score and V-score of predictions, without a model", arguments, options)) return 0;
  require_setting("score", "predictions", options.predictions, "FILE");
  require_setting("score", "data", options.data, "FILE");
  options.metrics.check();
  std::optional<grounding::BoxFrame> frame;
  if (!options.frame.empty()) frame = grounding::BoxFrame::parse(options.frame);

  const Predictions predictions = read_predictions(options.predictions);
  const auto dataset = data::open_dataset(options.data);
  if (!dataset->bad_rows().empty()) {
    const data::BadRow& first = dataset->bad_rows().front();
    spdlog::warn("{}: {} rows cannot be read and are left out; the first is row {}: {}", options.data,
                 dataset->bad_rows().size(), first.row, first.reason);
  }
  const std::vector<data::Sample> samples = read_samples(*dataset);
  require_known_ids(predictions, samples, options);

  GeometrySource geometries(options.images);
  std::vector<eval::QuestionScore> questions;
  questions.reserve(samples.size());
  std::vector<std::string> missing;
  for (const data::Sample& sample : samples) {
    const auto prediction = predictions.find(sample.id);
    if (prediction == predictions.end()) {
      missing.push_back(sample.id);
      questions.push_back(eval::score_missing(sample));
      continue;
    }
    const grounding::BoxFrame written = frame.value_or(sample.frame);
    const grounding::ImageGeometry geometry = geometries.geometry_of(sample, written);
    questions.push_back(eval::score_question({sample, prediction->second, written, geometry}, options.metrics));
  }
  if (!missing.empty()) {
    spdlog::warn("{} of {} questions have no prediction and count as wrong: {}", missing.size(), samples.size(),
                 first_ids(missing));
  }

  const eval::Scores scores = eval::summarize(questions, options.metrics);
  Json json = eval::scores_to_json(scores);
  json["num_missing"] = missing.size();
  json["num_bad_rows"] = dataset->bad_rows().size();
  json["rules"]["frame"] = frame ? frame->name() : "the reference's own";
  json["predictions"] = options.predictions;
  json["data"] = options.data;
  if (!options.out.empty()) {
    std::string lines;
    for (const eval::QuestionScore& question : questions) {
      lines += eval::question_to_json(question).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    }
    const std::filesystem::path folder = options.out;
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) throw_failure("cannot make the folder {}: {}", folder.string(), error.message());
    write_file_atomically(folder / "questions.jsonl", lines);
    write_file_atomically(folder / "scores.json", json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }
  if (options.json) {
    fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print("{}", eval::scores_to_table(scores));
    if (!missing.empty()) fmt::print("{} questions without a prediction count as wrong.\n", missing.size());
  }
  return 0;
}

}  // namespace thinkvg::tools
