#include "thinkvg/eval/results.h"

#include <algorithm>
#include <vector>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"

namespace thinkvg::eval {
namespace {

namespace fs = std::filesystem;

Json regions_to_json(const std::vector<grounding::Region>& regions, const grounding::ImageGeometry& geometry,
                     const grounding::BoxFrame& frame) {
  Json list = Json::array();
  for (const grounding::Region& region : regions) {
    const grounding::Box box = geometry.convert(region.box, frame);
    list.push_back({{"ref", region.name}, {"box", {box.x1, box.y1, box.x2, box.y2}}});
  }
  return list;
}

Json number_or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

Json text_or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

}  // namespace

Json prediction_line(const AnsweredQuestion& answered) {
  const data::Sample& sample = answered.sample;
  const QuestionScore& score = answered.score;
  const grounding::BoxFrame& frame = sample.frame;
  const auto regions = [&](const std::vector<grounding::Region>& list) {
    return regions_to_json(list, answered.geometry, frame);
  };
  const auto in_frame = [&](std::string_view text) {
    if (answered.frame == frame) return std::string(text);
    return grounding::convert_inline_boxes(text, answered.geometry, answered.frame, frame);
  };
  Json line;
  line["id"] = sample.id;
  line["image"] = sample.image;
  if (!answered.picture.empty()) line["image_file"] = fs::absolute(answered.picture).string();
  if (answered.picture_size) {
    line["width"] = answered.picture_size->width;
    line["height"] = answered.picture_size->height;
  }
  line["type"] = data::question_type_name(sample.type);
  if (!sample.content_type.empty()) line["content_type"] = sample.content_type;
  line["question"] = sample.question;
  line["choices"] = sample.choices;
  line["reference"] = {{"answer", sample.answer}, {"think", sample.think}, {"regions", regions(sample.regions)}};
  line["frame"] = frame.name();
  line["response"] = in_frame(answered.response);
  line["parsed"] = {{"complete", score.response.complete},
                    {"problem", score.problem},
                    {"answer", score.response.answer},
                    {"think", in_frame(score.response.think)},
                    {"regions", regions(score.response.regions)},
                    {"think_regions", regions(score.response.think_regions)}};
  line["a_score"] = number_or_null(score.a_score);
  line["v_score"] = number_or_null(score.v_score);
  if (score.token_f1) line["token_f1"] = *score.token_f1;
  if (score.judge) line["judge"] = {{"model", score.judge->model}, {"reference", score.judge->reference}};
  if (score.confidence) line["confidence"] = *score.confidence;
  return line;
}

Json provenance_to_json(const Provenance& provenance) {
  return {{"subset", text_or_null(provenance.subset)},
          {"prompt", text_or_null(provenance.prompt)},
          {"judge", text_or_null(provenance.judge)},
          {"model_sha256", text_or_null(provenance.model_sha256)},
          {"data_sha256", text_or_null(provenance.data_sha256)},
          {"seed", provenance.seed},
          {"version", version()}};
}

std::string provenance_text(const Provenance& provenance) {
  const auto said = [](const std::string& text, const char* otherwise) { return text.empty() ? otherwise : text; };
  const auto hash = [&](const std::string& sha256) { return said(sha256.substr(0, 16), "not known"); };
  return fmt::format(
      "subset: {}\nprompt: {}\njudge: {}\nSHA-256 of the model or predictions {}, of the data {}; seed {}; thinkvg "
      "{}\n",
      said(provenance.subset, "not said"), said(provenance.prompt, "not said"), said(provenance.judge, "none"),
      hash(provenance.model_sha256), hash(provenance.data_sha256), provenance.seed, version());
}

std::string sha256_path(const fs::path& path) {
  if (fs::is_regular_file(path)) return sha256_file(path);
  if (!fs::is_directory(path)) return "";
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::string list;
  for (const fs::path& file : files) list += file.filename().string() + " " + sha256_file(file) + "\n";
  return sha256_text(list);
}

std::string subset_text(const SubsetCounts& counts, const data::DataOptions& options) {
  std::string text = counts.used == counts.all ? fmt::format("all {} questions", format_count(counts.all))
                                               : fmt::format("the first {} of {} questions", format_count(counts.used),
                                                             format_count(counts.all));
  if (counts.without_picture > 0)
    text += fmt::format("; {} left out without their picture", format_count(counts.without_picture));
  if (counts.bad_rows > 0) text += fmt::format("; {} rows could not be read", format_count(counts.bad_rows));
  if (!options.mix.empty()) text += fmt::format("; mixed with {}", fmt::join(options.mix, ", "));
  const data::DataOptions whole;
  if (!options.filter.empty()) text += "; filter: " + options.filter;
  if (options.patients != whole.patients) {
    text += fmt::format("; patients {} by seed {}", options.patients, options.split_seed);
  }
  if (options.fraction != whole.fraction || options.complement) {
    text += fmt::format("; {} {} of the patients by seed {}", options.complement ? "all but" : "the share",
                        options.fraction, options.split_seed);
  }
  for (const auto& [name, value] : {std::pair("type", options.per_type), std::pair("picture", options.per_picture),
                                    std::pair("patient", options.per_patient)}) {
    if (value > 0) text += fmt::format("; at most {} a {}", value, name);
  }
  if (options.limit > 0) text += fmt::format("; the first {}", options.limit);
  return text;
}

}  // namespace thinkvg::eval
