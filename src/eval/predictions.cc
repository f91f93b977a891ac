#include "thinkvg/eval/predictions.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <unordered_set>

#include "eval/inline_boxes.h"
#include "eval/json_lines.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/data/sample.h"

namespace thinkvg::eval {
namespace {

constexpr std::array<const char*, 4> kIdKeys = {"id", "question_id", "row_id", "q_id"};
constexpr std::array<const char*, 7> kTextKeys = {"response",     "text", "output", "prediction",
                                                  "model_output", "pred", "answer"};
constexpr std::array<const char*, 4> kListKeys = {"results", "predictions", "answers", "outputs"};

std::string_view trim(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

// Names and answers of other formats must not bring tags of their own.
std::string without_tags(std::string_view text) {
  std::string out(trim(text));
  std::erase_if(out, [](char c) { return c == '<' || c == '>'; });
  return out;
}

// A text with its boxes as x1, y1, x2, y2.
std::string with_corners(std::string_view text, grounding::BoxOrder order) {
  if (order == grounding::BoxOrder::xyxy) return std::string(text);
  std::string out;
  std::size_t done = 0;
  for (const InlineBox& written : find_inline_boxes(text)) {
    const grounding::Box box = grounding::make_box(written.numbers, order, grounding::BoxFrame());
    out += text.substr(done, written.begin - done);
    out += fmt::format("[{}, {}, {}, {}]", box.x1, box.y1, box.x2, box.y2);
    done = written.end;
  }
  out += text.substr(done);
  return out;
}

struct NamedBox {
  std::string name;
  std::array<double, 4> numbers;
};

struct Parts {
  std::string think;
  bool has_think = false;
  std::string answer;
  std::vector<NamedBox> boxes;
};

std::string tagged(const Parts& parts) {
  std::string out;
  if (parts.has_think) out += "<think>" + parts.think + "</think>";
  out += "<response><answer>" + parts.answer + "</answer>";
  if (!parts.boxes.empty()) out += "<location>";
  for (const NamedBox& box : parts.boxes) {
    const auto& [x1, y1, x2, y2] = box.numbers;
    out += fmt::format("<ref>{}</ref><box>[{}, {}, {}, {}]</box>", box.name, x1, y1, x2, y2);
  }
  if (!parts.boxes.empty()) out += "</location>";
  return out + "</response>";
}

// The text behind a tag, up to the next tag of the format; nothing without the tag.
std::optional<std::string_view> section(std::string_view text, std::string_view tag) {
  const std::size_t at = text.find(tag);
  if (at == std::string_view::npos) return std::nullopt;
  std::string_view rest = text.substr(at + tag.size());
  std::size_t end = rest.size();
  for (const std::string_view next : {"<answer>", "<reason>", "<location>", "</answer>", "</reason>", "</location>"}) {
    end = std::min(end, rest.find(next));
  }
  return trim(rest.substr(0, end));
}

std::string from_gemex(std::string_view text) {
  const auto answer = section(text, "<answer>");
  if (!answer) return std::string(text);
  Parts parts;
  parts.answer = without_tags(*answer);
  if (const auto reason = section(text, "<reason>")) {
    parts.has_think = true;
    parts.think = without_tags(*reason);
  }
  if (const auto location = section(text, "<location>")) {
    for (const InlineBox& box : find_inline_boxes(*location)) parts.boxes.push_back({"", box.numbers});
  }
  return tagged(parts);
}

// The first balanced JSON object or list of a text; empty where there is none.
std::string_view json_part(std::string_view text) {
  const std::size_t begin = text.find_first_of("{[");
  if (begin == std::string_view::npos) return {};
  std::int64_t depth = 0;
  bool quoted = false;
  for (std::size_t at = begin; at < text.size(); ++at) {
    const char c = text[at];
    if (quoted) {
      if (c == '\\') {
        ++at;
      } else if (c == '"') {
        quoted = false;
      }
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if ((c == '}' || c == ']') && --depth == 0) {
      return text.substr(begin, at - begin + 1);
    }
  }
  return {};
}

bool is_quad(const Json& json) {
  return json.is_array() && json.size() == 4 &&
         std::all_of(json.begin(), json.end(), [](const Json& number) { return number.is_number(); });
}

std::string text_of(const Json& json) { return json.is_string() ? json.get<std::string>() : json.dump(); }

constexpr int kMaxJsonDepth = 8;

// Boxes and answer of an object, or of all objects of a list.
class JsonCollector {
 public:
  explicit JsonCollector(grounding::BoxOrder order) : order_(order) {}

  void collect(const Json& json, int depth = 0) {
    if (depth > kMaxJsonDepth) return;
    if (json.is_array()) {
      if (is_quad(json)) return add_box("", json, order_);
      for (const Json& item : json) collect(item, depth + 1);
      return;
    }
    if (!json.is_object()) return;
    std::string name;
    for (const char* key : {"label", "name", "ref", "region"}) {
      if (name.empty() && json.contains(key)) name = without_tags(text_of(json[key]));
    }
    if (json.contains("answer")) answers.push_back(without_tags(text_of(json["answer"])));
    for (const char* key : {"bbox_2d", "bbox", "box", "boxes", "box_2d"}) {
      if (!json.contains(key)) continue;
      const Json& value = json[key];
      const Json list = is_quad(value) ? Json::array({value}) : value;
      if (!list.is_array()) continue;
      const bool is_y_first = std::string_view(key) == "box_2d";
      for (const Json& quad : list) {
        if (is_quad(quad)) add_box(name, quad, is_y_first ? grounding::BoxOrder::yxyx : order_);
      }
    }
    for (const char* key : {"objects", "detections", "regions", "locations"}) {
      if (json.contains(key)) collect(json[key], depth + 1);
    }
  }

  std::vector<NamedBox> boxes;
  std::vector<std::string> answers;

 private:
  void add_box(const std::string& name, const Json& quad, grounding::BoxOrder order) {
    const grounding::Box box = grounding::make_box(quad.get<std::array<double, 4>>(), order, grounding::BoxFrame());
    boxes.push_back({name, {box.x1, box.y1, box.x2, box.y2}});
  }

  grounding::BoxOrder order_;
};

std::string from_box_json(std::string_view text, grounding::BoxOrder order) {
  Parts parts;
  std::string_view rest = text;
  if (const std::size_t open = text.find("<think>"), close = text.find("</think>");
      open != std::string_view::npos && close != std::string_view::npos && open < close) {
    parts.has_think = true;
    parts.think = with_corners(trim(text.substr(open + 7, close - open - 7)), order);
    rest = text.substr(close + 8);
  }
  const std::string_view part = json_part(rest);
  if (const auto answer = section(rest, "<answer>"); answer && answer->find_first_of("{[") == std::string_view::npos) {
    parts.answer = without_tags(*answer);
    return tagged(parts);
  }
  const Json json = Json::parse(part, nullptr, false);
  if (part.empty() || json.is_discarded()) return std::string(text);
  if (json.is_array() && json.empty()) parts.answer = "none";
  JsonCollector collector(order);
  collector.collect(json);
  parts.boxes = std::move(collector.boxes);
  std::vector<std::string> answers = std::move(collector.answers);
  if (answers.empty()) {
    for (const NamedBox& box : parts.boxes) {
      if (!box.name.empty() && std::find(answers.begin(), answers.end(), box.name) == answers.end()) {
        answers.push_back(box.name);
      }
    }
  }
  if (answers.empty() && parts.boxes.empty() && parts.answer.empty()) return std::string(text);
  for (const std::string& answer : answers) parts.answer += (parts.answer.empty() ? "" : ", ") + answer;
  if (parts.answer.empty()) parts.answer = "region";
  return tagged(parts);
}

// A text without brackets that hold nothing but commas and spaces, as boxes leave them behind, nor the spaces before
// them.
std::string without_empty_brackets(std::string_view text) {
  std::string out;
  std::vector<std::size_t> open;  // where brackets begin in `out` that hold nothing so far
  for (const char c : text) {
    if (c == ']' && !open.empty()) {
      out.resize(open.back());
      open.pop_back();
      while (!out.empty() && out.back() == ' ') out.pop_back();
      continue;
    }
    if (c == '[') {
      open.push_back(out.size());
    } else if (std::string_view(", \n\t").find(c) == std::string_view::npos) {
      open.clear();
    }
    out += c;
  }
  return out;
}

std::string from_plain(std::string_view text) {
  Parts parts;
  std::string words;
  std::size_t done = 0;
  for (const InlineBox& box : find_inline_boxes(text)) {
    words += text.substr(done, box.begin - done);
    while (words.ends_with(' ')) words.pop_back();
    done = box.end;
    parts.boxes.push_back({"", box.numbers});
  }
  words += text.substr(done);
  parts.answer = without_tags(parts.boxes.empty() ? words : without_empty_brackets(words));
  if (!parts.boxes.empty()) {
    // What stood between boxes without a list around them.
    while (!parts.answer.empty() && (parts.answer.back() == ',' || parts.answer.back() == ' ')) parts.answer.pop_back();
    if (parts.answer.empty()) parts.answer = "region";
  }
  return tagged(parts);
}

// What most of the texts look like. Text in words is taken for an answer only where the file is not of the project's
// own kind, whose responses without tags are failures.
TextFormat detect_format(const std::vector<Prediction>& predictions, bool is_own) {
  constexpr std::size_t kLooked = 400;
  std::array<std::size_t, 4> votes{};
  for (std::size_t i = 0; i < std::min(kLooked, predictions.size()); ++i) {
    const std::string& text = predictions[i].text;
    const auto has = [&](std::string_view part) { return text.find(part) != std::string::npos; };
    TextFormat format = TextFormat::plain;
    if (has("\"bbox_2d\"") || has("\"box_2d\"") || has("\"bbox\"")) {
      format = TextFormat::box_json;
    } else if (has("<response>") || has("</response>") || has("<ref>") || has("<box>")) {
      format = TextFormat::tags;
    } else if (has("<answer>") && (has("<reason>") || has("<location>"))) {
      format = TextFormat::gemex;
    } else if (has("<think>") || has("<answer>")) {
      format = TextFormat::tags;
    }
    ++votes[static_cast<std::size_t>(format)];
  }
  if (is_own) votes[static_cast<std::size_t>(TextFormat::plain)] = 0;
  const auto most = std::max_element(votes.begin(), votes.end());
  return *most == 0 ? TextFormat::tags : static_cast<TextFormat>(most - votes.begin());
}

// The first key that the row has, rather one with a value; the wanted one where it is named.
template <std::size_t N>
std::string find_key(const Json& row, const std::string& wanted, const std::array<const char*, N>& known) {
  if (!wanted.empty()) return wanted;
  for (const bool with_null : {false, true}) {
    for (const char* key : known) {
      if (row.contains(key) && (with_null || !row[key].is_null())) return key;
    }
  }
  return "";
}

grounding::BoxFrame frame_of(const std::string& name, const std::string& place) {
  try {
    return grounding::BoxFrame::parse(name);
  } catch (const std::invalid_argument& error) {
    throw_failure("{}: {}", place, error.what());
  }
}

// "multi_choice_question.jsonl" -> "multi_choice"; empty where the name says no type.
std::string type_of_file(const std::filesystem::path& file) {
  std::string name = file.filename().string();
  name = name.substr(0, name.find('.'));
  try {
    return data::question_type_name(data::parse_question_type(name));
  } catch (const std::invalid_argument&) {
    return "";
  }
}

class RowReader {
 public:
  RowReader(const PredictionOptions& options, PredictionFile& out) : options_(options), out_(out) {}

  // Of the rows that follow. `is_part`: one of several files whose ids count within their type.
  void begin_file(const std::filesystem::path& file, bool is_part) {
    type_ = type_of_file(file);
    is_part_ = is_part;
    if (is_part && type_.empty())
      throw_failure(
          "{}: a folder of predictions holds files named by their type of question, such as open_ended_question.jsonl; "
          "this name says none",
          file.string());
  }

  void read(const Json& row, const std::string& place) {
    if (!row.is_object()) throw_failure("{}: expected an object, but it is {}", place, row.type_name());
    if (out_.predictions.empty()) {
      out_.id_key = find_key(row, options_.id_key, kIdKeys);
      out_.text_key = find_key(row, options_.text_key, kTextKeys);
      out_.has_ids = !out_.id_key.empty();
      if (out_.text_key.empty()) {
        throw_failure(
            "{}: none of the keys response, text, output, prediction, model_output, pred, answer; name the "
            "key of the text with --text_key",
            place);
      }
    }
    Prediction prediction;
    if (out_.has_ids) {
      if (!row.contains(out_.id_key)) throw_failure("{}: \"{}\" is missing", place, out_.id_key);
      prediction.id = json_id(row[out_.id_key], place);
      if (out_.id_key == "q_id") {
        prediction.id = type_prefix(row, place) + prediction.id;
      } else if (is_part_ && prediction.id.find('/') == std::string::npos) {
        prediction.id = type_ + "/" + prediction.id;
      }
      if (!ids_.insert(prediction.id).second) {
        throw_failure("{}: id '{}' came before; each question takes one response", place, prediction.id);
      }
    }
    if (!row.contains(out_.text_key) || !(row[out_.text_key].is_string() || row[out_.text_key].is_null())) {
      throw_failure("{}: \"{}\" of id '{}' must be text", place, out_.text_key, prediction.id);
    }
    // null: a request that failed. It is answered, and wrong.
    if (row[out_.text_key].is_string()) prediction.text = row[out_.text_key].get<std::string>();
    if (row.contains("frame") && row["frame"].is_string())
      prediction.frame = frame_of(row["frame"].get<std::string>(), place);
    if (row.contains("confidence") && row["confidence"].is_number()) {
      prediction.confidence = std::clamp(row["confidence"].get<double>(), 0.0, 1.0);
    } else if (row.contains("answer_logprob") && row["answer_logprob"].is_number()) {
      prediction.confidence = std::clamp(std::exp(row["answer_logprob"].get<double>()), 0.0, 1.0);
    }
    out_.predictions.push_back(std::move(prediction));
  }

 private:
  // q_id counts within one type.
  std::string type_prefix(const Json& row, const std::string& place) const {
    for (const char* key : {"q_type", "question_type", "type"}) {
      if (!row.contains(key) || !row[key].is_string()) continue;
      try {
        return data::question_type_name(data::parse_question_type(row[key].get<std::string>())) + "/";
      } catch (const std::invalid_argument&) {
        continue;  // GEMeX's "type" is what a question is about
      }
    }
    if (!type_.empty()) return type_ + "/";
    throw_failure(
        "{}: a q_id counts within one type of question, which neither a q_type or question_type nor the file's name "
        "says",
        place);
  }

  const PredictionOptions& options_;
  PredictionFile& out_;
  std::string type_;  // that the file's name says; may be empty
  bool is_part_ = false;
  std::unordered_set<std::string> ids_;
};

// The list of predictions of a file that is one JSON value.
const Json& list_of(const Json& json, const std::filesystem::path& file) {
  if (json.is_array()) return json;
  for (const char* key : kListKeys) {
    if (json.is_object() && json.contains(key) && json[key].is_array()) return json[key];
  }
  throw_failure(
      "{}: expected JSON lines, a list, or an object with a list under results, predictions, answers or "
      "outputs",
      file.string());
}

// Whether each line is an object of its own, or the whole file one JSON value.
bool is_json_lines(std::string_view content) {
  std::string_view text = trim(content);
  if (text.starts_with("\xEF\xBB\xBF")) text = trim(text.substr(3));  // a byte order mark
  const std::string_view first = trim(text.substr(0, text.find('\n')));
  if (!first.starts_with('{')) return !first.starts_with('[');
  if (!Json::accept(first)) return !Json::accept(text);
  if (first.size() < text.size()) return true;
  const Json only = Json::parse(first);
  return std::none_of(kListKeys.begin(), kListKeys.end(),
                      [&](const char* key) { return only.contains(key) && only[key].is_array(); });
}

// The JSON files of a folder, by name.
std::vector<std::filesystem::path> files_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string extension = entry.path().extension().string();
    if (entry.is_regular_file() && (extension == ".jsonl" || extension == ".json")) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) throw_failure("the folder {} holds no .jsonl or .json file of predictions", folder.string());
  return files;
}

}  // namespace

TextFormat parse_text_format(std::string_view name) {
  if (name == "tags") return TextFormat::tags;
  if (name == "gemex") return TextFormat::gemex;
  if (name == "box_json") return TextFormat::box_json;
  if (name == "plain") return TextFormat::plain;
  throw_invalid("unknown format of predictions '{}'; known are: auto, tags, gemex, box_json, plain", name);
}

std::string text_format_name(TextFormat format) {
  switch (format) {
    case TextFormat::tags:
      return "tags";
    case TextFormat::gemex:
      return "gemex";
    case TextFormat::box_json:
      return "box_json";
    case TextFormat::plain:
      return "plain";
  }
  return "tags";
}

std::string to_tagged_response(std::string_view text, TextFormat format, grounding::BoxOrder order) {
  switch (format) {
    case TextFormat::tags:
      break;
    case TextFormat::gemex:
      return from_gemex(with_corners(text, order));
    case TextFormat::box_json:
      return from_box_json(text, order);
    case TextFormat::plain:
      return from_plain(with_corners(text, order));
  }
  return with_corners(text, order);
}

PredictionFile read_predictions(const std::filesystem::path& path, const PredictionOptions& options) {
  std::optional<TextFormat> wanted;
  if (options.format != "auto") wanted = parse_text_format(options.format);
  const grounding::BoxOrder order = grounding::parse_box_order(options.box_order);
  std::vector<std::filesystem::path> files = {path};
  const bool is_folder = std::filesystem::is_directory(path);
  if (is_folder) files = files_of(path);
  PredictionFile out;
  RowReader reader(options, out);
  for (const std::filesystem::path& file : files) {
    reader.begin_file(file, is_folder);
    const std::string content = read_file(file);
    if (is_json_lines(content)) {
      for_each_json_line(file, [&](const Json& row, const std::string& place) { reader.read(row, place); });
      continue;
    }
    const Json json = Json::parse(content, nullptr, false);
    if (json.is_discarded())
      throw_failure("{}: neither JSON lines nor a whole JSON value; was the file cut off?", file.string());
    std::int64_t number = 0;
    for (const Json& row : list_of(json, file)) {
      ++number;
      reader.read(row, fmt::format("{}, entry {}", file.string(), number));
    }
  }
  if (out.predictions.empty()) throw_failure("{} holds no predictions", path.string());
  out.order = order;
  out.format = wanted ? *wanted : detect_format(out.predictions, out.text_key == "response");
  return out;
}

}  // namespace thinkvg::eval
