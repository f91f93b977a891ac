#include "thinkvg/text/chat.h"

namespace thinkvg::text {

Prompt chat_prompt(const Tokenizer& tokenizer, const std::string& system, const std::string& question,
                   const std::vector<std::int64_t>& num_image_tokens) {
  Prompt prompt;
  const auto add = [&](const std::string& text) {
    const std::vector<std::int64_t> ids = tokenizer.encode(text);
    prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
  };
  std::string opening;
  if (!system.empty()) opening = "<|im_start|>system\n" + system + "<|im_end|>\n";
  opening += "<|im_start|>user\n";
  add(opening);
  const std::int64_t image = num_image_tokens.empty() ? -1 : tokenizer.token_id("<|image_pad|>");
  for (const std::int64_t count : num_image_tokens) {
    prompt.ids.push_back(tokenizer.token_id("<|vision_start|>"));
    for (std::int64_t i = 0; i < count; ++i) {
      prompt.image_rows.push_back(static_cast<std::int64_t>(prompt.ids.size()));
      prompt.ids.push_back(image);
    }
    prompt.ids.push_back(tokenizer.token_id("<|vision_end|>"));
  }
  add(question + "<|im_end|>\n<|im_start|>assistant\n");
  return prompt;
}

std::vector<std::int64_t> chat_answer(const Tokenizer& tokenizer, const std::string& answer) {
  std::vector<std::int64_t> ids = tokenizer.encode(answer);
  ids.push_back(tokenizer.token_id("<|im_end|>"));
  return ids;
}

std::string chat_template_jinja() {
  return "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
         "{% if message['content'] is string %}{{ message['content'] }}"
         "{% else %}{% for part in message['content'] %}"
         "{% if part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
         "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
}

}  // namespace thinkvg::text
