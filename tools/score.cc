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
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/parallel.h"
#include "thinkvg/data/image_size.h"
#include "thinkvg/data/images.h"
#include "thinkvg/data/options.h"
#include "thinkvg/eval/baselines.h"
#include "thinkvg/eval/box_reading.h"
#include "thinkvg/eval/detection.h"
#include "thinkvg/eval/judge.h"
#include "thinkvg/eval/metrics.h"
#include "thinkvg/eval/predictions.h"
#include "thinkvg/eval/results.h"
#include "tools/commands.h"

namespace thinkvg::tools {
namespace {

struct ScoreOptions {
  std::string predictions;
  data::DataOptions data = eval::scored_data();
  std::string images;
  std::string frame;
  bool fuse_readers = false;
  bool detection = false;
  std::string judge_scores;
  rewards::JudgeOptions judge = eval::answer_judge_options();
  std::string name;
  std::string prompt;
  bool baselines = true;
  bool json = false;
  std::string out;
  eval::PredictionOptions reading;
  eval::MetricOptions metrics;

  void visit(SettingsVisitor& v) {
    v.setting(
        "predictions", predictions,
        "Predictions of any system: JSON lines {\"id\": .., \"response\": ..}, LLaVA answers, GEMeX or bbox_2d; or a "
        "folder of such files, one a type of question, named as GEMeX's are.");
    v.section("data", data, "The questions with their reference answers and boxes.");
    v.setting("images", images,
              "Image root; only needed where --frame cannot be converted without the pictures' sizes.");
    v.setting("frame", frame,
              "Frame of the predicted boxes: original, letterbox-N, stretch-N, stretch-WxH, unit, hundred, thousand; "
              "empty: what the predictions say, else the reference's own.");
    reading.visit(v);
    v.setting("fuse_readers", fuse_readers, "Fuse the boxes of several readers of a picture (VinDr-CXR) first.");
    v.setting("detection", detection, "Average precision of the boxes by the names of their regions, too.");
    v.setting("judge_scores", judge_scores, "JSON lines of a judge's grades, for the AR-score.");
    v.section("judge", judge, "A judge to ask now, for the AR-score; its grades are kept in `out`/judge.jsonl.");
    v.setting("name", name, "Name of the system in reports.");
    v.setting("prompt", prompt, "How the questions were put, in words, for reports.");
    v.setting("baselines", baselines, "Score the most frequent answer and random boxes, too.");
    v.setting("json", json, "Print one JSON document instead of a table.");
    v.setting("out", out, "Folder for metrics.json and predictions.jsonl, which `thinkvg report` reads.");
    metrics.visit(v);
  }
};

using PredictionIndex = std::unordered_map<std::string, const eval::Prediction*>;  // by sample id

// What is known of a sample's picture.
struct PictureFacts {
  std::filesystem::path file;  // empty: not looked up or not there
  std::optional<grounding::ImageSize> size;
};

// Sizes come from the headers of the pictures; only those that are needed must be there.
class PictureSource {
 public:
  explicit PictureSource(const std::string& image_root) {
    if (!image_root.empty()) finder_.emplace(image_root);
  }

  const PictureFacts& facts_of(const data::Sample& sample, const grounding::BoxFrame& frame) {
    const bool needed = grounding::conversion_needs_picture(frame, sample.frame) ||
                        std::any_of(sample.regions.begin(), sample.regions.end(), [&](const auto& region) {
                          return grounding::conversion_needs_picture(region.box.frame, sample.frame);
                        });
    if (needed && !finder_) {
      throw_invalid(
          "boxes in the frame '{}' cannot be compared with references in '{}' without the pictures' sizes; name the "
          "image root with --images",
          frame.name(), sample.frame.name());
    }
    const auto [entry, is_new] = known_.try_emplace(sample.image);
    PictureFacts& facts = entry->second;
    if (!is_new || !finder_) return facts;
    facts.file = needed ? finder_->require(sample) : finder_->find(sample.image);
    if (!facts.file.empty()) facts.size = data::read_image_size(facts.file);
    return facts;
  }

 private:
  std::optional<data::ImageFinder> finder_;
  std::unordered_map<std::string, PictureFacts> known_;
};

std::string first_ids(const std::vector<std::string>& ids) {
  constexpr std::size_t kShown = 5;
  const std::vector<std::string> shown(ids.begin(),
                                       ids.begin() + static_cast<std::ptrdiff_t>(std::min(kShown, ids.size())));
  return fmt::format("{}{}", fmt::join(shown, ", "), ids.size() > kShown ? ", .." : "");
}

// Whether the settings use a part of the set only: predictions for the others are then nothing wrong.
bool uses_a_part(const data::DataOptions& options) {
  return eval::subset_text({1, 1}, options) != eval::subset_text({1, 1}, data::DataOptions());
}

void require_known_ids(const PredictionIndex& predictions, const std::vector<data::Sample>& samples,
                       const ScoreOptions& options) {
  std::unordered_map<std::string_view, int> known;
  for (const data::Sample& sample : samples) known[sample.id] = 1;
  std::vector<std::string> unknown;
  for (const auto& [id, prediction] : predictions) {
    if (!known.contains(id)) unknown.push_back(id);
  }
  if (unknown.empty()) return;
  if (uses_a_part(options.data) && unknown.size() < predictions.size()) {
    spdlog::warn("{} of {} predictions are not for questions of the chosen part", unknown.size(), predictions.size());
    return;
  }
  std::sort(unknown.begin(), unknown.end());
  throw_failure("{} of {} ids in {} are not in {}: {}; its ids look like '{}'", unknown.size(), predictions.size(),
                options.predictions, options.data.path, first_ids(unknown), samples.empty() ? "" : samples.front().id);
}

PredictionIndex index_predictions(const eval::PredictionFile& file, const std::vector<data::Sample>& samples,
                                  const ScoreOptions& options) {
  PredictionIndex index;
  if (file.has_ids) {
    for (const eval::Prediction& prediction : file.predictions) index.emplace(prediction.id, &prediction);
    require_known_ids(index, samples, options);
    return index;
  }
  if (file.predictions.size() != samples.size()) {
    throw_failure("{} has no ids, so that its {} predictions must stand for the {} questions of {} in order",
                  options.predictions, file.predictions.size(), samples.size(), options.data.path);
  }
  spdlog::warn("{} has no ids: its predictions are taken in the order of the questions", options.predictions);
  for (std::size_t i = 0; i < samples.size(); ++i) index.emplace(samples[i].id, &file.predictions[i]);
  return index;
}

std::vector<data::Sample> read_samples(const data::Dataset& dataset) {
  std::vector<data::Sample> samples;
  samples.reserve(static_cast<std::size_t>(dataset.size()));
  for (std::int64_t i = 0; i < dataset.size(); ++i) samples.push_back(dataset.get(i));
  return samples;
}

// A question as it goes into scoring; `prediction` is null where there is none.
struct Work {
  const data::Sample* sample = nullptr;
  const eval::Prediction* prediction = nullptr;
  grounding::BoxFrame frame;
  const PictureFacts* picture = nullptr;
};

grounding::ImageGeometry geometry_of(const Work& work) {
  return grounding::ImageGeometry(work.picture->size.value_or(grounding::ImageSize{1, 1}));
}

void make_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw_failure("cannot make the folder {}: {}", folder.string(), error.message());
}

// Grades of a file, or of the judge that is asked now; a question without a prediction is not put to it.
eval::JudgeFile judge_answers(const ScoreOptions& options, const std::vector<Work>& work,
                              const eval::PredictionFile& file, const eval::Judge& judge) {
  if (!options.judge_scores.empty()) return eval::read_judge_scores(options.judge_scores);
  if (!judge) return {};
  std::vector<eval::JudgeRequest> requests;
  for (const Work& item : work) {
    if (!item.prediction) continue;
    const std::string response = file.tagged(*item.prediction);
    const auto parsed = grounding::parse_response(response, item.frame, false);
    requests.push_back({*item.sample, parsed.has_answer ? parsed.answer : response, parsed.think});
  }
  std::filesystem::path kept;
  if (!options.out.empty()) {
    make_folder(options.out);
    kept = std::filesystem::path(options.out) / "judge.jsonl";
  }
  return eval::run_judge(requests, judge, {kept});
}

// One line a question for predictions.jsonl.
std::string result_lines(const std::vector<Work>& work, const std::vector<eval::QuestionScore>& questions,
                         const eval::PredictionFile& file) {
  std::vector<std::string> lines(work.size());
  parallel_for(work.size(), [&](std::size_t i) {
    const Work& item = work[i];
    std::string response;
    if (item.prediction) response = file.tagged(*item.prediction);
    const grounding::ImageGeometry geometry = geometry_of(item);
    lines[i] = eval::prediction_line(
                   {*item.sample, questions[i], response, item.frame, geometry, item.picture->file, item.picture->size})
                   .dump(-1, ' ', false, Json::error_handler_t::replace) +
               "\n";
  });
  std::string text;
  for (const std::string& line : lines) text += line;
  return text;
}

// A reading of the boxes that fits far better, as a warning and for the document; null where there is none.
Json check_boxes(const std::vector<Work>& work, const std::vector<eval::QuestionScore>& questions,
                 const eval::PredictionFile& file) {
  if (file.order != grounding::BoxOrder::xyxy) return nullptr;
  std::vector<eval::SizedQuestion> sized;
  std::optional<grounding::BoxFrame> frame_read;
  for (std::size_t i = 0; i < work.size(); ++i) {
    if (!work[i].prediction) continue;
    // Predictions that name several frames know their own.
    if (frame_read && !(work[i].frame == *frame_read)) return nullptr;
    frame_read = work[i].frame;
    sized.push_back({*work[i].sample, questions[i], work[i].picture->size});
  }
  if (!frame_read) return nullptr;
  const auto likelier = eval::likelier_reading(sized, *frame_read);
  if (!likelier) return nullptr;
  const std::string frame = likelier->reading.frame.name(), order = grounding::box_order_name(likelier->reading.order);
  const bool is_frame = likelier->reading.order == grounding::BoxOrder::xyxy;
  spdlog::warn(
      "the predicted boxes fit the references far better with --{} {}: a V-score of {:.2f}, where they have {:.2f} now "
      "(of {} questions). Is the {} right?",
      is_frame ? "frame" : "box_order", is_frame ? frame : order, likelier->v_score, likelier->v_score_as_read,
      likelier->num_questions, is_frame ? "frame" : "order of their numbers");
  return {{"frame", frame}, {"box_order", order}, {"v_score", likelier->v_score}};
}

void write_results(const ScoreOptions& options, const Json& document, const std::string& lines) {
  const std::filesystem::path folder = options.out;
  make_folder(folder);
  write_file_atomically(folder / "predictions.jsonl", lines);
  write_file_atomically(folder / "config.yaml", to_yaml(settings_to_json(options)));
  const Json manifest =
      make_manifest("score", options.metrics.seed, {{"data", options.data.path}, {"predictions", options.predictions}});
  write_file_atomically(folder / "manifest.json", manifest.dump(2) + "\n");
  write_file_atomically(folder / "metrics.json", document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace

int run_score(const Arguments& arguments) {
  const auto names_rollouts = [](const std::string& a) { return a == "--rollouts" || a.starts_with("--rollouts="); };
  if (std::any_of(arguments.begin(), arguments.end(), names_rollouts)) return run_score_rollouts(arguments);
  ScoreOptions options;
  if (!parse_options("score", "scores of predictions of any system, without a model", arguments, options)) return 0;
  require_setting("score", "predictions", options.predictions, "FILE");
  require_setting("score", "data", options.data.path, "FILE");
  options.metrics.check();
  if (options.judge.is_given() && !options.judge_scores.empty())
    throw_invalid("give --judge_scores, a file of grades, or a judge to ask, not both");
  eval::Judge judge;
  if (options.judge.is_given()) judge = eval::make_answer_judge(options.judge);
  std::optional<grounding::BoxFrame> frame;
  if (!options.frame.empty()) frame = grounding::BoxFrame::parse(options.frame);
  if (options.reading.format != "auto") eval::parse_text_format(options.reading.format);
  grounding::parse_box_order(options.reading.box_order);

  const eval::PredictionFile file = eval::read_predictions(options.predictions, options.reading);
  const auto dataset = data::open_data(options.data);
  std::vector<data::Sample> samples = read_samples(*dataset);
  if (options.fuse_readers) samples = eval::fuse_readers(samples);
  const PredictionIndex predictions = index_predictions(file, samples, options);

  PictureSource pictures(options.images);
  std::vector<Work> work;
  work.reserve(samples.size());
  std::vector<std::string> missing;
  for (const data::Sample& sample : samples) {
    const auto found = predictions.find(sample.id);
    Work item{&sample, found == predictions.end() ? nullptr : found->second, sample.frame};
    if (item.prediction) {
      item.frame = frame.value_or(item.prediction->frame.value_or(sample.frame));
    } else {
      missing.push_back(sample.id);
    }
    item.picture = &pictures.facts_of(sample, item.frame);
    work.push_back(item);
  }
  if (!missing.empty()) {
    spdlog::warn("{} of {} questions have no prediction and count as wrong: {}", missing.size(), samples.size(),
                 first_ids(missing));
  }

  std::vector<eval::QuestionScore> questions(work.size());
  parallel_for(work.size(), [&](std::size_t i) {
    const Work& item = work[i];
    if (item.prediction) {
      const std::string response = file.tagged(*item.prediction);
      questions[i] = eval::score_question({*item.sample, response, item.frame, geometry_of(item)}, options.metrics);
      questions[i].confidence = item.prediction->confidence;
    } else {
      questions[i] = eval::score_missing(*item.sample, options.metrics);
    }
  });

  const std::int64_t num_questions = std::ssize(samples), num_bad_rows = std::ssize(dataset->bad_rows());
  eval::Provenance provenance;
  provenance.subset = eval::subset_text({num_questions, num_questions, 0, num_bad_rows}, options.data);
  provenance.prompt = options.prompt;
  provenance.seed = options.metrics.seed;
  provenance.model_sha256 = eval::sha256_path(options.predictions);
  provenance.data_sha256 = eval::sha256_path(options.data.path);
  const eval::JudgeFile judged = judge_answers(options, work, file, judge);
  const std::int64_t num_judged = eval::apply_judge_scores(questions, judged.scores);
  const bool is_judged = judge || !options.judge_scores.empty();
  if (is_judged) provenance.judge = judged.judge.empty() ? "unnamed" : judged.judge;

  const eval::Scores scores = eval::summarize(questions, options.metrics);
  Json json = eval::scores_to_json(scores);
  if (!options.name.empty()) json["name"] = options.name;
  json["num_missing"] = missing.size();
  json["num_bad_rows"] = num_bad_rows;
  if (is_judged) json["num_judged"] = num_judged;
  json["rules"]["frame"] = frame ? frame->name() : "as the predictions say, else the reference's own";
  json["rules"]["format"] = eval::text_format_name(file.format);
  json["rules"]["box_order"] = grounding::box_order_name(file.order);
  if (Json likelier = check_boxes(work, questions, file); !likelier.is_null()) json["boxes_fit_better_as"] = likelier;
  json["predictions"] = options.predictions;
  json["data"] = options.data.path;
  json["provenance"] = eval::provenance_to_json(provenance);
  std::optional<eval::AveragePrecision> detection;
  if (options.detection) detection = eval::average_precision(eval::detection_images(samples, questions));
  if (detection) json["detection"] = eval::detection_to_json(*detection);
  if (options.baselines) json["baselines"] = eval::baselines_to_json(samples, options.metrics);
  if (!options.out.empty()) write_results(options, json, result_lines(work, questions, file));
  if (options.json) {
    fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print("{}{}{}", eval::scores_to_table(scores), detection ? eval::detection_to_table(*detection) : "",
               eval::provenance_text(provenance));
    if (!missing.empty()) fmt::print("{} questions without a prediction count as wrong.\n", missing.size());
  }
  return 0;
}

}  // namespace thinkvg::tools
