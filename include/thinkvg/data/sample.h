#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "thinkvg/grounding/box.h"

namespace thinkvg::data {

enum class QuestionType { open, closed, single_choice, multi_choice };

// "open", "closed", "single_choice", "multi_choice": the stable names in files, metrics and reports.
std::string question_type_name(QuestionType type);
// Takes those names and the spellings of the releases ("open_ended_questions", "closed_ended_question", ..).
// Throws std::invalid_argument that lists what it knows.
QuestionType parse_question_type(std::string_view name);

// One question about one picture (or several), as its data set gives it.
struct Sample {
  std::string id;       // unique in the set: ThinkVG the row number, GEMeX "<type>/<q_id>"
  std::string image;    // path relative to the image root, no leading slash
  std::string patient;  // "p10000032" out of the path; empty if unknown
  QuestionType type = QuestionType::open;
  std::string content_type;                // GEMeX content (abnormality, location, ..); empty if unknown
  std::string question;                    // without the choices where they could be told apart
  std::vector<std::string> choices;        // "A: ..", ..; empty for open and closed questions
  std::string think;                       // reference reasoning, boxes inline in `frame`; may be empty
  std::string answer;                      // text; "yes"/"no"; a letter; letters "A, C" for multi choice
  std::vector<grounding::Region> regions;  // reference regions on `image`, in `frame`
  grounding::BoxFrame frame;

  std::vector<std::string> more_images;                      // further pictures of the question, in order, as `image`
  std::vector<std::vector<grounding::Region>> more_regions;  // regions on more_images[i]; as many, or none at all
  grounding::ImageSize size;                  // of `image` as shown, where the set says it; 0 x 0: unknown
  std::string split;                          // "train", "test", .. where the set says it
  std::map<std::string, std::string> fields;  // what else the set says of the row, by its own names: q_lang, modality
  // Further questions about the same pictures, in order, each asked behind the answers before it: only where
  // join_turns() made one sample of a conversation.
  std::vector<Sample> more_turns;

  // The question as it is put to a model: question, then one line per choice.
  std::string prompt() const;
};

}  // namespace thinkvg::data
