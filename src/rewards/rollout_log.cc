#include "thinkvg/rewards/rollout_log.h"

#include <algorithm>
#include <utility>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::rewards {
namespace {

Json region_list(const std::vector<grounding::Region>& regions) {
  Json list = Json::array();
  for (const grounding::Region& region : regions)
    list.push_back({{"ref", region.name}, {"box", {region.box.x1, region.box.y1, region.box.x2, region.box.y2}}});
  return list;
}

// Reads the fields of one line; each error names file, line and field.
class LineReader {
 public:
  LineReader(const Json& line, std::string place) : line_(line), place_(std::move(place)) {}

  bool has(const char* field) const { return line_.contains(field) && !line_[field].is_null(); }

  std::string text(const char* field) const {
    require(field, has(field) && line_[field].is_string(), "text");
    return line_[field].get<std::string>();
  }
  std::string text_or(const char* field, std::string otherwise) const {
    return has(field) ? text(field) : std::move(otherwise);
  }
  std::int64_t integer_or(const char* field, std::int64_t otherwise) const {
    if (!has(field)) return otherwise;
    require(field, line_[field].is_number_integer(), "a whole number");
    return line_[field].get<std::int64_t>();
  }
  grounding::BoxFrame frame(const char* field) const {
    try {
      return grounding::BoxFrame::parse(text(field));
    } catch (const std::invalid_argument& error) {
      throw_failure("{}: \"{}\": {}", place_, field, error.what());
    }
  }
  std::vector<grounding::Region> regions(const char* field, const grounding::BoxFrame& frame) const {
    std::vector<grounding::Region> regions;
    if (!has(field)) return regions;
    require(field, line_[field].is_array(), "a list of {\"ref\", \"box\"}");
    for (const Json& item : line_[field]) {
      require(field, item.is_object() && item.contains("box") && is_box(item["box"]), "a list of {\"ref\", \"box\"}");
      const Json& box = item["box"];
      const bool named = item.contains("ref") && item["ref"].is_string();
      regions.push_back(
          {named ? item["ref"].get<std::string>() : "",
           {box[0].get<double>(), box[1].get<double>(), box[2].get<double>(), box[3].get<double>(), frame}});
    }
    return regions;
  }
  std::vector<std::string> texts(const char* field) const {
    std::vector<std::string> list;
    if (!has(field)) return list;
    require(field, line_[field].is_array(), "a list of texts");
    for (const Json& item : line_[field]) {
      require(field, item.is_string(), "a list of texts");
      list.push_back(item.get<std::string>());
    }
    return list;
  }
  std::vector<std::int64_t> integers(const char* field) const {
    std::vector<std::int64_t> list;
    if (!has(field)) return list;
    require(field, line_[field].is_array(), "a list of whole numbers");
    for (const Json& item : line_[field]) {
      require(field, item.is_number_integer(), "a list of whole numbers");
      list.push_back(item.get<std::int64_t>());
    }
    return list;
  }
  void require(const char* field, bool fits, const char* expected) const {
    if (!fits)
      throw_failure("{}: \"{}\" must be {}, but is {:.80}", place_, field, expected,
                    line_.contains(field) ? line_[field].dump() : "missing");
  }

 private:
  static bool is_box(const Json& box) {
    return box.is_array() && box.size() == 4 &&
           std::all_of(box.begin(), box.end(), [](const Json& number) { return number.is_number(); });
  }

  const Json& line_;
  std::string place_;
};

LoggedRollout read_rollout(const Json& line, const std::string& place) {
  const LineReader reader(line, place);
  LoggedRollout rollout;
  rollout.sample.id = reader.text("id");
  rollout.response = reader.text("response");
  rollout.frame = reader.frame("frame");
  rollout.truncated = reader.text_or("finish", "stop") == "length";
  rollout.step = reader.integer_or("step", 0);
  rollout.completion = reader.integer_or("completion", 0);
  rollout.num_tokens = reader.integer_or("num_tokens", -1);
  rollout.ids = reader.integers("ids");
  if (const auto size = reader.integers("image_size"); !size.empty()) {
    reader.require("image_size", size.size() == 2 && size[0] > 0 && size[1] > 0, "[width, height]");
    rollout.image_size = grounding::ImageSize{size[0], size[1]};
  }
  if (line.contains("reward") && line["reward"].is_number()) rollout.reward = line["reward"].get<double>();
  rollout.rewards = line.contains("rewards") && line["rewards"].is_object() ? line["rewards"] : Json::object();
  if (!reader.has("type")) return rollout;
  rollout.has_reference = true;
  try {
    rollout.sample.type = data::parse_question_type(reader.text("type"));
  } catch (const std::invalid_argument& error) {
    throw_failure("{}: \"type\": {}", place, error.what());
  }
  rollout.sample.frame = reader.frame("reference_frame");
  rollout.sample.image = reader.text_or("image", "");
  rollout.sample.choices = reader.texts("choices");
  rollout.sample.question = reader.text_or("question", "");
  // What Sample::prompt() put behind the question comes off again.
  std::string tail;
  for (const std::string& choice : rollout.sample.choices) tail += "\n" + choice;
  if (!tail.empty() && rollout.sample.question.ends_with(tail))
    rollout.sample.question.resize(rollout.sample.question.size() - tail.size());
  rollout.sample.answer = reader.text("reference");
  rollout.sample.think = reader.text_or("reference_think", "");
  rollout.sample.regions = reader.regions("reference_regions", rollout.sample.frame);
  return rollout;
}

}  // namespace

Json rollout_to_json(const RewardInput& input) {
  const data::Sample& sample = input.sample;
  const grounding::ImageSize size = input.geometry.original();
  std::vector<grounding::Region> reference;
  for (const grounding::Region& region : sample.regions)
    reference.push_back({region.name, input.geometry.convert(region.box, sample.frame)});
  Json json = {{"step", input.step},
               {"id", sample.id},
               {"completion", input.completion},
               {"type", data::question_type_name(sample.type)},
               {"question", sample.prompt()},
               {"choices", sample.choices},
               {"reference", sample.answer},
               {"reference_think", sample.think},
               {"reference_regions", region_list(reference)},
               {"reference_frame", sample.frame.name()},
               {"image", sample.image},
               {"image_size", {size.width, size.height}},
               {"response", input.text},
               {"frame", input.frame.name()},
               {"finish", input.truncated ? "length" : "stop"}};
  if (input.num_tokens >= 0) json["num_tokens"] = input.num_tokens;
  if (!input.ids.empty()) json["ids"] = std::vector<std::int64_t>(input.ids.begin(), input.ids.end());
  return json;
}

Json rollout_to_program_json(const RewardInput& input) {
  Json json = rollout_to_json(input);
  json["parsed"] = {{"complete", input.parsed.complete},
                    {"problem", input.parsed.problem},
                    {"think", input.parsed.think},
                    {"answer", input.parsed.answer},
                    {"regions", region_list(input.parsed.regions)},
                    {"think_regions", region_list(input.parsed.think_regions)}};
  return json;
}

void LoggedRollout::prepare(const grounding::ImageGeometry& of_picture, bool require_think) {
  geometry = std::make_unique<grounding::ImageGeometry>(of_picture);
  parsed = std::make_unique<grounding::ParsedResponse>(grounding::parse_response(response, frame, require_think));
}

RewardInput LoggedRollout::input() const {
  if (!parsed || !geometry) throw_invalid("LoggedRollout::input needs prepare() before it");
  return {.sample = sample,
          .parsed = *parsed,
          .geometry = *geometry,
          .text = response,
          .frame = frame,
          .truncated = truncated,
          .num_tokens = num_tokens,
          .ids = ids,
          .step = step,
          .completion = completion};
}

std::vector<LoggedRollout> read_rollouts(const std::filesystem::path& file) {
  const std::string content = read_file(file);
  std::vector<LoggedRollout> rollouts;
  std::int64_t number = 0;
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view text = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const Json line = Json::parse(text, nullptr, false);
    if (line.is_discarded() && end == content.size()) break;
    const std::string place = fmt::format("{} line {}", file.string(), number);
    if (!line.is_object()) throw_failure("{}: expected a logged completion, but found: {:.80}", place, text);
    rollouts.push_back(read_rollout(line, place));
  }
  if (rollouts.empty()) throw_failure("{} holds no completions", file.string());
  return rollouts;
}

}  // namespace thinkvg::rewards
