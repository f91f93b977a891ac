#include <spdlog/fmt/fmt.h>

#include <stdexcept>

#include "data/formats.h"
#include "data/json_fields.h"
#include "data/row_dataset.h"
#include "data/rows.h"
#include "thinkvg/grounding/answer.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::data {
namespace {

struct Turn {
  std::string role;  // "user", "assistant", "system"
  std::string text;
};

std::string role_of(std::string name) {
  if (name == "human" || name == "user") return "user";
  if (name == "gpt" || name == "assistant" || name == "model") return "assistant";
  if (name == "system") return name;
  throw std::invalid_argument(
      fmt::format("'{}' is no speaker; known are human, user, gpt, assistant, model, system", name));
}

// The text of "content": a text, or a list of parts of which those of type "text" count.
std::string content_text(const Json& turn) {
  const auto content = turn.find("content");
  if (content == turn.end() || !content->is_array()) return text_field(turn, "content");
  std::string text;
  for (const Json& part : *content) {
    if (part.is_object() && text_field(part, "type") == "text") text += text_field(part, "text");
  }
  return text;
}

// A text, or a list of {"role", "content"}.
std::vector<Turn> part_of_dialogue(const Json& value, const char* role) {
  if (value.is_string()) return {Turn{role, trimmed(value.get_ref<const std::string&>())}};
  if (!value.is_array()) throw std::invalid_argument("'prompt' and 'completion' should be texts or lists of turns");
  std::vector<Turn> turns;
  for (const Json& turn : value) {
    if (!turn.is_object()) throw std::invalid_argument("a turn should be an object, not " + turn.dump());
    turns.push_back({role_of(text_field(turn, "role")), content_text(turn)});
  }
  return turns;
}

std::vector<Turn> turns_of(const Json& row) {
  if (row.contains("prompt") && row.contains("completion")) {
    std::vector<Turn> turns = part_of_dialogue(row["prompt"], "user");
    for (Turn& turn : part_of_dialogue(row["completion"], "assistant")) turns.push_back(std::move(turn));
    return turns;
  }
  const bool messages = row.contains("messages");
  const auto list = row.find(messages ? "messages" : "conversations");
  if (list == row.end() || !list->is_array()) throw std::invalid_argument("'conversations' should be a list of turns");
  std::vector<Turn> turns;
  for (const Json& turn : *list) {
    if (!turn.is_object()) throw std::invalid_argument("a turn should be an object, not " + turn.dump());
    turns.push_back(messages ? Turn{role_of(text_field(turn, "role")), content_text(turn)}
                             : Turn{role_of(text_field(turn, "from")), text_field(turn, "value")});
  }
  return turns;
}

std::string without_image_marks(std::string text) {
  for (const std::string_view mark : {"<image>", "<|image|>", "<image_placeholder>"}) {
    for (std::size_t at = text.find(mark); at != std::string::npos; at = text.find(mark)) text.erase(at, mark.size());
  }
  return trimmed(text);
}

// Pictures among the parts of a turn: {"type": "image", "image": "a.jpg"}, or "path", or "url".
std::vector<std::string> images_among_parts(const Json& turns) {
  std::vector<std::string> images;
  if (!turns.is_array()) return images;
  for (const Json& turn : turns) {
    const auto content = turn.find("content");
    if (content == turn.end() || !content->is_array()) continue;
    for (const Json& part : *content) {
      if (!part.is_object() || text_field(part, "type") != "image") continue;
      std::string name = text_field(part, {"image", "path", "url"});
      constexpr std::string_view kFile = "file://";
      if (name.starts_with(kFile)) name.erase(0, kFile.size());
      if (!name.empty()) images.push_back(relative_image(name));
    }
  }
  return images;
}

std::vector<std::string> images_of(const Json& row) {
  for (const char* key : {"image", "images"}) {
    const auto value = row.find(key);
    if (value == row.end() || value->is_null()) continue;
    std::vector<std::string> images;
    if (value->is_array() && !value->empty() && (*value)[0].is_object()) {
      for (const Json& item : *value) images.push_back(text_field(item, "path"));
    } else {
      images = texts_field(row, key);
    }
    for (std::string& image : images) image = relative_image(image);
    return images;
  }
  for (const char* key : {"messages", "prompt"}) {
    if (const auto turns = row.find(key); turns != row.end()) return images_among_parts(*turns);
  }
  return {};
}

// A letter, or letters, as the whole answer.
bool names_letters(const std::string& answer) {
  return grounding::read_option_letters(answer, grounding::AnswerReading::strict).has_value();
}

QuestionType type_of(const Json& row, const SplitQuestion& split, const std::string& answer) {
  for (const char* key : {"q_type", "question_type", "type"}) {
    try {
      if (std::string name = text_field(row, key); !name.empty()) return parse_question_type(name);
    } catch (const std::invalid_argument&) {
      // Other sets say other things there.
    }
  }
  if (!split.choices.empty() && names_letters(answer)) {
    const auto letters = grounding::read_option_letters(answer, grounding::AnswerReading::strict);
    return letters->size() > 1 ? QuestionType::multi_choice : QuestionType::single_choice;
  }
  return guess_type({}, answer, false);
}

struct Reply {
  std::string answer, think, problem;
  std::vector<grounding::Region> regions;
  grounding::ParsedResponse parsed;
};

Reply read_reply(const std::string& text, const grounding::BoxFrame& frame) {
  Reply reply;
  if (text.find("<answer>") == std::string::npos) {
    reply.answer = text;
    return reply;
  }
  reply.parsed = text.find("</answer>") == std::string::npos
                     ? grounding::parse_sectioned_reply(text, frame)
                     : grounding::parse_response(text, frame, /*expect_think=*/false);
  if (!reply.parsed.has_answer) throw std::invalid_argument("the reply cannot be parsed: " + reply.parsed.problem);
  // <think>..</think><answer>..</answer> without <response> is usual elsewhere.
  const bool only_tags_lack = reply.parsed.problem == "no <response>";
  if (!reply.parsed.complete && !only_tags_lack) reply.problem = "the reply cannot be parsed: " + reply.parsed.problem;
  reply.answer = reply.parsed.answer;
  reply.think = reply.parsed.think;
  reply.regions = reply.parsed.regions;
  return reply;
}

ParsedRow parse_row(std::string_view text, const RowPlace& place, bool frame_is_given) {
  const Json row = parse_json_row(text);
  const std::vector<Turn> turns = turns_of(row);
  const std::vector<std::string> images = images_of(row);
  if (images.empty()) throw std::invalid_argument("the row names no picture ('image' or 'images')");
  const std::string frame_name = text_field(row, "frame");
  const grounding::BoxFrame frame =
      frame_name.empty() ? grounding::BoxFrame::original() : grounding::BoxFrame::parse(frame_name);
  std::string id = text_field(row, {"id", "question_id", "row_id"});
  if (id.empty()) id = std::to_string(place.row);

  ParsedRow parsed;
  std::string question;
  std::size_t num_pairs = 0;
  for (const Turn& turn : turns) num_pairs += turn.role == "assistant" ? 1 : 0;
  for (const Turn& turn : turns) {
    if (turn.role == "system") continue;
    if (turn.role == "user") {
      if (!question.empty()) throw std::invalid_argument("two questions without an answer between");
      question = without_image_marks(turn.text);
      continue;
    }
    if (question.empty()) throw std::invalid_argument("an answer without a question before it");
    Reply reply = read_reply(turn.text, frame);
    Sample sample;
    const std::size_t part = parsed.samples.size();
    sample.id = num_pairs > 1 ? fmt::format("{}/{}", id, part) : id;
    sample.image = images.front();
    sample.more_images.assign(images.begin() + 1, images.end());
    sample.patient = text_field(row, {"patient", "patient_id", "subject_id"});
    if (sample.patient.empty()) sample.patient = patient_of(sample.image);
    sample.frame = frame;
    sample.split = text_field(row, "split");
    const SplitQuestion split = split_choices(question);
    sample.type = type_of(row, split, reply.answer);
    set_question(sample, question);
    sample.answer = tidy_answer(reply.answer, sample.type, sample.choices);
    sample.think = std::move(reply.think);
    sample.regions = std::move(reply.regions);
    sample.content_type = text_field(row, "content_type");
    sample.fields =
        other_fields(row, {"id", "image", "images", "split", "frame", "content_type", "prompt", "completion"});
    sample.fields["turn"] = std::to_string(part);
    take_bad_boxes(reply.parsed, sample, parsed);
    if (parsed.problem.empty()) parsed.problem = reply.problem;
    if (parsed.problem.empty() && !frame_is_given && frame_name.empty() &&
        (!sample.regions.empty() || !reply.parsed.think_regions.empty())) {
      parsed.problem =
          "the reply has boxes, but the row does not name their frame; give it with data.frame (inspect: --frame)";
    }
    parsed.samples.push_back(std::move(sample));
    question.clear();
  }
  if (parsed.samples.empty()) throw std::invalid_argument("the row has no question with an answer");
  if (!question.empty() && parsed.problem.empty()) parsed.problem = "the last question has no answer";
  return parsed;
}

}  // namespace

bool is_conversations(const Preview& file) {
  return file.is_json_rows() &&
         (file.has("conversations") || file.has("messages") || file.has_all({"prompt", "completion"}));
}

std::unique_ptr<Dataset> open_conversations(const std::vector<Preview>& files, const std::string& frame) {
  for (const Preview& file : files) {
    if (!file.has("messages") && !file.has("prompt")) require_fields(file, FileKind::json_list, {"conversations"});
  }
  const bool frame_is_given = !frame.empty();
  return read_rows(
      files,
      {.columns = {},
       .parse = [frame_is_given](const std::vector<std::string_view>& cells,
                                 const RowPlace& place) { return parse_row(cells[0], place, frame_is_given); },
       // LLaVA's own lists use an id for all conversations about a picture.
       .repeated_ids_are_bad = false},
      frame);
}

}  // namespace thinkvg::data
