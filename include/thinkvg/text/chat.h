#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "thinkvg/core/settings.h"
#include "thinkvg/text/tokenizer.h"

namespace thinkvg::text {

// How a question is put to the model.
struct PromptOptions {
  std::string system;
  std::string instruction;

  void visit(SettingsVisitor& v) {
    v.setting("system", system, "System line of the chat; empty: none.");
    v.setting("instruction", instruction, "Text behind every question, such as the wanted format; empty: none.");
  }
};

// One prompt as ids, ready for a completion to follow.
struct Prompt {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> image_rows;  // places in `ids` that hold image tokens, in order
};

// Qwen's chat markup (ChatML) for one user turn with pictures before the question:
//   <|im_start|>system\n{system}<|im_end|>\n            (left out when `system` is empty)
//   <|im_start|>user\n<|vision_start|><|image_pad|>..<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n
// `num_image_tokens`: how many image tokens each picture takes.
Prompt chat_prompt(const Tokenizer& tokenizer, const std::string& system, const std::string& question,
                   const std::vector<std::int64_t>& num_image_tokens);

// The ids of an assistant's answer: its text and the end-of-turn token.
std::vector<std::int64_t> chat_answer(const Tokenizer& tokenizer, const std::string& answer);

// The Jinja form of the same markup, for transformers.
std::string chat_template_jinja();

}  // namespace thinkvg::text
