#pragma once

#include <memory>
#include <vector>

#include "data/row_file.h"
#include "thinkvg/data/dataset.h"

namespace thinkvg::data {

// One layout of files: how it is told from the others, and how it is opened. `frame`: as in OpenOptions.
struct Format {
  const char* name;
  const char* summary;
  bool (*recognizes)(const Preview& file);
  std::unique_ptr<Dataset> (*open)(const std::vector<Preview>& files, const std::string& frame);
};

// thinkvg_parquet.cc
bool is_thinkvg(const Preview& file);
std::unique_ptr<Dataset> open_thinkvg(const std::vector<Preview>& files, const std::string& frame);

// own_jsonl.cc: the layout of thinkvg/data/jsonl.h.
bool is_own_jsonl(const Preview& file);
std::unique_ptr<Dataset> open_own_jsonl(const std::vector<Preview>& files, const std::string& frame);

// gemex.cc: GEMeX's test rows (the file's name tells the type of its questions), and its LLaVA-style training list.
bool is_gemex_test(const Preview& file);
std::unique_ptr<Dataset> open_gemex_test(const std::vector<Preview>& files, const std::string& frame);
bool is_gemex_train(const Preview& file);
std::unique_ptr<Dataset> open_gemex_train(const std::vector<Preview>& files, const std::string& frame);

// conversations.cc: {"conversations": [{"from", "value"}, ..]} of LLaVA and its children, {"messages": [{"role",
// "content"}, ..]} of ms-swift and chat APIs, {"prompt", "completion"} of TRL.
bool is_conversations(const Preview& file);
std::unique_ptr<Dataset> open_conversations(const std::vector<Preview>& files, const std::string& frame);

// vqa.cc: rows of a picture, a question and an answer.
bool is_vqa_rad(const Preview& file);
bool is_slake(const Preview& file);
bool is_vqa(const Preview& file);
std::unique_ptr<Dataset> open_vqa(const std::vector<Preview>& files, const std::string& frame);

// box_sets.cc: findings with their boxes, without questions.
bool is_ms_cxr(const Preview& file);
std::unique_ptr<Dataset> open_ms_cxr(const std::vector<Preview>& files, const std::string& frame);
bool is_vindr(const Preview& file);
std::unique_ptr<Dataset> open_vindr(const std::vector<Preview>& files, const std::string& frame);
bool is_rsna(const Preview& file);
std::unique_ptr<Dataset> open_rsna(const std::vector<Preview>& files, const std::string& frame);
bool is_nih(const Preview& file);
std::unique_ptr<Dataset> open_nih(const std::vector<Preview>& files, const std::string& frame);

}  // namespace thinkvg::data
