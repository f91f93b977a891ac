#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/grounding/box.h"

// Predictions of any system, read from its own files.
namespace thinkvg::eval {

// How the text of a prediction is written.
enum class TextFormat {
  tags,      // <think>..</think><response><answer>..</answer><location>..</location></response>
  gemex,     // <answer> .. <reason> .. <location> [[x1, y1, x2, y2], ..], closing tags or not
  box_json,  // JSON objects with "bbox_2d" (x1, y1, x2, y2) or "box_2d" (y1, x1, y2, x2), in <answer> or ``` or alone
  plain,     // an answer in words; [x1, y1, x2, y2] inside it are boxes
};
// "tags", "gemex", "box_json", "plain"; else std::invalid_argument that lists them.
TextFormat parse_text_format(std::string_view name);
std::string text_format_name(TextFormat format);

// The same response in the first format, which score_question reads. Text that is not of its format stays as it is (and
// will be unparsed). Never throws on text. A reading of other formats:
//   gemex     <reason> becomes the reasoning
//   box_json  "label" names the region; the answer is the "answer" of an object, else the labels, else "none" for an
//             empty list; words in <answer> are an answer without boxes
//   plain     everything but the boxes is the answer
// `order`: how the text writes its boxes; the result has x1, y1, x2, y2. "box_2d" is yxyx whatever it says.
std::string to_tagged_response(std::string_view text, TextFormat format,
                               grounding::BoxOrder order = grounding::BoxOrder::xyxy);

struct PredictionOptions {
  std::string format = "auto";
  std::string box_order = "xyxy";
  std::string id_key;
  std::string text_key;

  void visit(SettingsVisitor& v) {
    v.setting("format", format, "How predictions are written: auto, tags, gemex, box_json or plain.");
    v.setting(
        "box_order", box_order,
        "Order of a predicted box's numbers: xyxy (corners), yxyx, xywh (corner, width, height) or cxcywh (centre, "
        "width, height); \"box_2d\" is yxyx by itself.");
    v.setting("id_key", id_key, "Key of a prediction's question id; empty: id, question_id, row_id or q_id.");
    v.setting("text_key", text_key,
              "Key of a prediction's text; empty: response, text, output, prediction, model_output, pred or answer.");
  }
};

struct Prediction {
  std::string id;                            // empty where the file has none
  std::string text;                          // as written
  std::optional<grounding::BoxFrame> frame;  // of its boxes, where the line says so ("frame")
  std::optional<double> confidence;          // "confidence", or exp("answer_logprob")
};

struct PredictionFile {
  TextFormat format = TextFormat::tags;
  grounding::BoxOrder order = grounding::BoxOrder::xyxy;
  std::string id_key, text_key;  // as found
  bool has_ids = true;           // without ids, predictions stand in the order of the questions
  std::vector<Prediction> predictions;

  // to_tagged_response of one of them.
  std::string tagged(const Prediction& prediction) const { return to_tagged_response(prediction.text, format, order); }
};

// Reads JSON lines, a JSON list, or a JSON object with such a list under "results", "predictions", "answers" or
// "outputs": the project's own predictions.jsonl, LLaVA's answers files (question_id, text), GEMeX's and VLM-R1's
// results; or a folder of such files, one a type of question, named as GEMeX names its own
// ("multi_choice_question.jsonl"). q_id with q_type (else the type of the file's name), and any id in a folder, gives
// ids such as "multi_choice/3". A text that is null is an empty one. The format is detected from the texts where it is
// "auto". Throws std::runtime_error naming file and line for what is no prediction, an id that comes twice, or a file
// without predictions.
PredictionFile read_predictions(const std::filesystem::path& path, const PredictionOptions& options = {});

}  // namespace thinkvg::eval
