#include "data/formats.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>

#include "thinkvg/core/error.h"
#include "thinkvg/grounding/box.h"

namespace thinkvg::data {
namespace {

namespace fs = std::filesystem;

// A new format costs a pair of functions and a line here. The first that recognises a file takes it.
constexpr std::array kFormats = {
    Format{"thinkvg", "GEMeX-ThinkVG release: parquet with image_path, question, question_type, thinkVG, response",
           is_thinkvg, open_thinkvg},
    Format{"jsonl", "thinkvg's own JSON lines: images, question, type, choices, think, answer, boxes, frame",
           is_own_jsonl, open_own_jsonl},
    Format{"gemex_train", "GEMeX training list: row_id, image, q_type, conversations", is_gemex_train,
           open_gemex_train},
    Format{"conversations",
           "LLaVA style (image, conversations), ms-swift style (images, messages), TRL style (prompt, completion)",
           is_conversations, open_conversations},
    Format{"gemex", "GEMeX test rows: question, choices, answer, reason, visual_locations, image_path", is_gemex_test,
           open_gemex_test},
    Format{"vqa_rad", "VQA-RAD: qid, image_name, question, answer, answer_type, phrase_type", is_vqa_rad, open_vqa},
    Format{"slake", "SLAKE: qid, img_name, question, answer, q_lang, answer_type", is_slake, open_vqa},
    Format{"vqa", "PathVQA, and the hub's VQA-RAD and SLAKE: image, question, answer (pictures may be inside)", is_vqa,
           open_vqa},
    Format{"ms_cxr", "MS-CXR: phrases with boxes, CSV or COCO-style JSON", is_ms_cxr, open_ms_cxr},
    Format{"vindr", "VinDr-CXR: image_id, class_name, rad_id, x_min, y_min, x_max, y_max", is_vindr, open_vindr},
    Format{"rsna", "RSNA Pneumonia: patientId, x, y, width, height, Target", is_rsna, open_rsna},
    Format{"nih", "NIH ChestX-ray14 box list: Image Index, Finding Label, Bbox [x,y,w,h]", is_nih, open_nih},
};

std::string format_lines() {
  std::string lines;
  for (const Format& format : kFormats) lines += fmt::format("\n  {:13} {}", format.name, format.summary);
  return lines;
}

const Format& format_named(const std::string& name) {
  std::vector<std::string> names;
  for (const Format& format : kFormats) {
    if (format.name == name) return format;
    names.emplace_back(format.name);
  }
  const std::string near = nearest_name(name, names);
  throw_invalid("unknown data format '{}'{}; known are:{}", name,
                near.empty() ? "" : fmt::format(", did you mean '{}'?", near), format_lines());
}

const Format* find_format(const Preview& file) {
  const auto found =
      std::find_if(kFormats.begin(), kFormats.end(), [&](const Format& format) { return format.recognizes(file); });
  return found == kFormats.end() ? nullptr : &*found;
}

std::string kind_name(FileKind kind) {
  switch (kind) {
    case FileKind::parquet:
      return "parquet";
    case FileKind::csv:
      return "CSV (or text)";
    case FileKind::json_lines:
      return "JSON lines";
    case FileKind::json_list:
      return "a JSON list";
    case FileKind::json_object:
      break;
  }
  return "a JSON object";
}

std::vector<fs::path> files_of(const fs::path& path) {
  if (!fs::exists(path)) throw_failure("{}: no such file or folder", path.string());
  if (!fs::is_directory(path)) return {path};
  std::vector<fs::path> files;
  for (const char* name :
       {"open_ended_question", "closed_ended_question", "single_choice_question", "multi_choice_question"}) {
    for (const char* extension : {".jsonl", ".jsonl.gz"}) {
      const fs::path file = path / (std::string(name) + extension);
      if (fs::exists(file)) files.push_back(file);
    }
  }
  if (!files.empty()) return files;
  for (const fs::path& folder : {path, path / "data"}) {
    if (!fs::is_directory(folder)) continue;
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.is_regular_file() && entry.path().extension() == ".parquet") files.push_back(entry.path());
    }
    if (!files.empty()) break;
  }
  if (files.empty()) {
    throw_failure(
        "{}: a folder is read when it holds GEMeX's *_question.jsonl files (open_ended_question.jsonl to "
        "multi_choice_question.jsonl) or parquet files; it has neither. To open one file, give its own path",
        path.string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

struct Chosen {
  const Format* format;
  std::vector<Preview> files;
};

Chosen choose(const fs::path& path, const std::string& name) {
  Chosen chosen{name.empty() ? nullptr : &format_named(name), {}};
  for (const fs::path& file : files_of(path)) chosen.files.push_back(preview_file(file));
  if (chosen.format != nullptr) return chosen;
  for (const Preview& file : chosen.files) {
    const Format* format = find_format(file);
    if (format == nullptr) {
      const bool one_row = file.kind == FileKind::json_object;
      throw_failure("{}: its format is not known. It is {} with {}{}; known formats:{}", file.file.string(),
                    kind_name(file.kind),
                    file.fields.empty() ? "no fields" : fmt::format("the fields {}", fmt::join(file.fields, ", ")),
                    one_row ? " (rows are read one a line, or as the elements of a list)" : "", format_lines());
    }
    if (chosen.format != nullptr && chosen.format != format) {
      throw_failure("{}: its format is {}, but {} before it is {}; open them one by one", file.file.string(),
                    format->name, chosen.files.front().file.string(), chosen.format->name);
    }
    chosen.format = format;
  }
  return chosen;
}

}  // namespace

std::vector<FormatInfo> known_formats() {
  std::vector<FormatInfo> infos;
  for (const Format& format : kFormats) infos.push_back({format.name, format.summary});
  return infos;
}

std::string detect_format(const fs::path& path) { return choose(path, {}).format->name; }

std::unique_ptr<Dataset> open_dataset(const fs::path& path, const OpenOptions& options) {
  if (!options.frame.empty()) grounding::BoxFrame::parse(options.frame);
  const Chosen chosen = choose(path, options.format);
  return chosen.format->open(chosen.files, options.frame);
}

}  // namespace thinkvg::data
