#include "thinkvg/text/chat.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>

#include "text/unicode.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

namespace thinkvg::text {
namespace fs = std::filesystem;
namespace {

using Parts = std::vector<ChatPart>;

// Puts parts together; text that follows text of the same kind is one part.
class Writer {
 public:
  void text(std::string_view text, bool loss = false) {
    if (text.empty()) return;
    if (!parts_.empty() && !parts_.back().is_image && parts_.back().loss == loss)
      parts_.back().text += text;
    else
      parts_.push_back({std::string(text), false, loss});
  }
  void learned(std::string_view text) { this->text(text, true); }
  void image() { parts_.push_back({{}, true, false}); }
  Parts take() { return std::move(parts_); }

 private:
  Parts parts_;
};

bool is_image(const MessagePart& part) { return part.kind == MessagePart::Kind::kImage; }

std::string all_text(const Message& message) {
  std::string text;
  for (const MessagePart& part : message.parts) text += part.text;
  return text;
}

std::string first_text(const Message& message) {
  for (const MessagePart& part : message.parts)
    if (!is_image(part)) return part.text;
  return {};
}

std::string_view role_name(Role role) {
  return role == Role::kSystem ? "system" : role == Role::kUser ? "user" : "assistant";
}

// Python's str.strip().
std::string_view strip(std::string_view text) {
  const auto is_space = [](char32_t c) { return is_whitespace(c) || (c >= 0x1C && c <= 0x1F); };
  while (!text.empty()) {
    const Character first = character_at(text, 0);
    if (!is_space(first.value)) break;
    text.remove_prefix(first.size);
  }
  while (!text.empty()) {
    const Character last = character_before(text, text.size());
    if (!is_space(last.value)) break;
    text.remove_suffix(last.size);
  }
  return text;
}

// User and assistant by turns, starting with the user.
void check_turns(std::string_view name, const std::vector<Message>& messages, std::size_t first) {
  for (std::size_t i = first; i < messages.size(); ++i)
    if (messages[i].role != ((i - first) % 2 == 0 ? Role::kUser : Role::kAssistant))
      throw_invalid("the chat template {} wants user and assistant by turns, but message {} is the {}'s", name, i,
                    role_name(messages[i].role));
}

Parts render_chatml(const std::vector<Message>& messages, bool add_generation_prompt, std::string_view default_system) {
  Writer out;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    if (i == 0 && message.role != Role::kSystem && !default_system.empty()) {
      out.text("<|im_start|>system\n");
      out.text(default_system);
      out.text("<|im_end|>\n");
    }
    const bool loss = message.role == Role::kAssistant;
    out.text("<|im_start|>");
    out.text(role_name(message.role));
    out.text("\n");
    for (const MessagePart& part : message.parts) {
      if (is_image(part)) {
        out.text("<|vision_start|>");
        out.image();
        out.text("<|vision_end|>");
      } else {
        out.text(part.text, loss);
      }
    }
    out.text("<|im_end|>", loss);
    out.text("\n");
  }
  if (add_generation_prompt) out.text("<|im_start|>assistant\n");
  return out.take();
}

Parts render_thinkvg(const std::vector<Message>& messages, bool add_generation_prompt) {
  return render_chatml(messages, add_generation_prompt, "");
}

Parts render_qwen2_vl(const std::vector<Message>& messages, bool add_generation_prompt) {
  return render_chatml(messages, add_generation_prompt, "You are a helpful assistant.");
}

// Only a first system line is written, and only the text of what the assistant says.
Parts render_qwen3_vl(const std::vector<Message>& messages, bool add_generation_prompt) {
  std::vector<Message> written;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role == Role::kSystem && i > 0) continue;
    written.push_back(messages[i]);
    if (messages[i].role != Role::kUser) std::erase_if(written.back().parts, is_image);
  }
  return render_chatml(written, add_generation_prompt, "");
}

Parts render_llava_vicuna(const std::vector<Message>& messages, bool add_generation_prompt) {
  Writer out;
  for (const Message& message : messages) {
    const bool loss = message.role == Role::kAssistant;
    if (message.role == Role::kUser) out.text("USER: ");
    if (loss) out.text("ASSISTANT:");
    bool space = loss;  // learned with what follows it, for they are one token
    for (const MessagePart& part : message.parts) {
      if (!is_image(part)) continue;
      if (space) out.text(" ");
      space = false;
      out.image();
      out.text("\n");
    }
    for (const MessagePart& part : message.parts) {
      if (is_image(part)) continue;
      out.text((space ? " " : "") + part.text, loss);
      space = true;
    }
    if (space) out.text(" ");
  }
  if (add_generation_prompt) out.text("ASSISTANT:");
  return out.take();
}

Parts render_llava_mistral(const std::vector<Message>& messages, bool add_generation_prompt) {
  static_cast<void>(add_generation_prompt);  // an answer follows [/INST] directly
  Writer out;
  for (const Message& message : messages) {
    switch (message.role) {
      case Role::kSystem:
        out.text("<<SYS>>\n" + first_text(message) + "\n<</SYS>>\n\n");
        break;
      case Role::kUser:
        out.text("[INST] ");
        for (const MessagePart& part : message.parts) {
          if (!is_image(part)) continue;
          out.image();
          out.text("\n");
        }
        out.text(all_text(message) + " [/INST]");
        break;
      case Role::kAssistant:
        out.learned(" " + first_text(message) + "</s>");
        out.text(" ");
        break;
    }
  }
  return out.take();
}

// Pictures and text of a user's message as LLaVA's own code puts them: "<image>\n" each, then the question.
void write_llava_question(const Message& message, Writer& out) {
  for (const MessagePart& part : message.parts) {
    if (!is_image(part)) continue;
    out.image();
    out.text("\n");
  }
  out.text(all_text(message));
}

constexpr std::string_view kLlavaSystem =
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and "
    "polite answers to the user's questions.";

Parts render_llava_v1(const std::vector<Message>& messages, bool add_generation_prompt) {
  Writer out;
  const bool has_system = !messages.empty() && messages.front().role == Role::kSystem;
  check_turns("llava_v1", messages, has_system ? 1 : 0);
  out.text(has_system ? all_text(messages.front()) : std::string(kLlavaSystem));
  out.text(" ");
  for (const Message& message : messages) {
    if (message.role == Role::kUser) {
      out.text("USER: ");
      write_llava_question(message, out);
      out.text(" ");
    } else if (message.role == Role::kAssistant) {
      out.text("ASSISTANT:");
      out.learned(" " + all_text(message) + "</s>");
    }
  }
  if (add_generation_prompt) out.text("ASSISTANT:");
  return out.take();
}

Parts render_llava_med(const std::vector<Message>& messages, bool add_generation_prompt) {
  static_cast<void>(add_generation_prompt);  // an answer follows [/INST] directly
  Writer out;
  const bool has_system = !messages.empty() && messages.front().role == Role::kSystem;
  check_turns("llava_med", messages, has_system ? 1 : 0);
  for (std::size_t i = has_system ? 1 : 0; i < messages.size(); ++i) {
    if (messages[i].role == Role::kUser) {
      out.text("[INST] ");
      if (has_system && i == 1) out.text("<<SYS>>\n" + all_text(messages.front()) + "\n<</SYS>>\n\n");
      write_llava_question(messages[i], out);
      out.text(" [/INST]");
    } else {
      out.learned(" " + all_text(messages[i]) + " </s>");
    }
  }
  return out.take();
}

Parts render_gemma3(const std::vector<Message>& messages, bool add_generation_prompt) {
  Writer out;
  out.text("<bos>");
  const bool has_system = !messages.empty() && messages.front().role == Role::kSystem;
  const std::size_t first = has_system ? 1 : 0;
  check_turns("gemma3", messages, first);
  for (std::size_t i = first; i < messages.size(); ++i) {
    const bool loss = messages[i].role == Role::kAssistant;
    out.text(loss ? "<start_of_turn>model\n" : "<start_of_turn>user\n");
    if (i == first && has_system) out.text(first_text(messages.front()) + "\n\n");
    for (const MessagePart& part : messages[i].parts) {
      if (is_image(part)) {
        out.text("\n\n<start_of_image>");
        out.image();
        out.text("<end_of_image>\n\n");
      } else {
        out.text(strip(part.text), loss);
      }
    }
    out.text("<end_of_turn>", loss);
    out.text("\n");
  }
  if (add_generation_prompt) out.text("<start_of_turn>model\n");
  return out.take();
}

// SHA-256 of released Jinja texts, without white space at the end.
struct KnownText {
  std::string_view sha256, name;
};
constexpr std::array kKnownTexts = {
    KnownText{"a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb", "qwen2_vl"},
    KnownText{"9d879ef91075acbfb2df7e441fd79d60bacfca989cf6d511d2af45c681e94f10", "qwen3_vl"},
    KnownText{"8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29", "gemma3"},
    // Line breaks in its texts written as such, or as \n.
    KnownText{"2c17243a977fd0643fb549a509a8e2684f45517df0f9f608d5893b719f16569f", "llava_mistral"},
    KnownText{"8568bb00da59cb4575831132a77a098c28870bd541ea0656c04167729ca028cb", "llava_mistral"},
    KnownText{"50c43d0ac06b32ddd89668462d54ab30c7f75a36b3f1d876e82772b386c2c6f0", "llava_vicuna"},
    KnownText{"6fef09c05345e88b9f85e80bcb3491003332050750586568bdf91cfa81965d0c", "llava_vicuna"},
};

Json read_object(const fs::path& file) {
  Json object = fs::exists(file) ? read_json_file(file) : Json::object();
  if (!object.is_object()) throw_failure("{}: expected a JSON object", file.string());
  return object;
}

// The Jinja text that the folder carries; empty where there is none.
std::string template_text(const fs::path& folder) {
  std::string text;
  if (fs::exists(folder / "chat_template.jinja")) {
    text = read_file(folder / "chat_template.jinja");
  } else {
    for (const char* file : {"chat_template.json", "tokenizer_config.json"}) {
      const Json found = read_object(folder / file).value("chat_template", Json());
      if (found.is_string()) text = found.get<std::string>();
      // Several, by name.
      if (found.is_array())
        for (const Json& one : found)
          if (one.is_object() && one.value("name", "") == "default") text = one.value("template", "");
      if (!text.empty()) break;
    }
  }
  while (!text.empty() && std::string_view(" \t\r\n").find(text.back()) != std::string_view::npos) text.pop_back();
  return text;
}

std::string_view name_of_family(const Json& config) {
  // What a checkpoint of LLaVA's own code keeps when it is saved in the layout of Hugging Face.
  for (const ChatTemplate& chat : chat_templates())
    if (config.value("conversation", Json()) == chat.name) return chat.name;
  const std::string type = config.value("model_type", "");
  if (type == "qwen2_vl" || type == "qwen2_5_vl") return "qwen2_vl";
  if (type == "qwen3_vl" || type == "qwen3_vl_moe") return "qwen3_vl";
  if (type == "gemma3") return "gemma3";
  if (type == "llava_mistral") return "llava_med";
  if (type == "llava_llama") return "llava_v1";
  // The layout of LLaVA's own code names its tower; Hugging Face's describes it.
  if (type == "llava" && config.contains("mm_vision_tower")) return "llava_v1";
  if (type == "llava" || type == "llava_next") {
    const Json& language = config.value("text_config", Json::object());
    return language.value("model_type", "llama") == "mistral" ? "llava_mistral" : "llava_vicuna";
  }
  return {};
}

std::string known_names() {
  std::string names;
  for (const ChatTemplate& chat : chat_templates()) names += (names.empty() ? "" : ", ") + std::string(chat.name);
  return names;
}

void append(Prompt& prompt, const std::vector<std::int64_t>& ids, bool loss) {
  prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
  prompt.loss_mask.resize(prompt.ids.size(), loss ? 1 : 0);
}

}  // namespace

const std::vector<ChatTemplate>& chat_templates() {
  static const std::vector<ChatTemplate> kTemplates = {
      {"thinkvg", "<|image_pad|>", "<|im_end|>", "", "", false, false, render_thinkvg},
      {"qwen2_vl", "<|image_pad|>", "<|im_end|>", "", "", false, false, render_qwen2_vl},
      {"qwen3_vl", "<|image_pad|>", "<|im_end|>", "", "", false, false, render_qwen3_vl},
      {"llava_vicuna", "<image>", "</s>", " ", "", false, false, render_llava_vicuna},
      {"llava_mistral", "<image>", "</s>", " ", "", false, false, render_llava_mistral},
      {"llava_v1", "<image>", "</s>", " ", "", false, true, render_llava_v1},
      {"llava_med", "<image>", "</s>", " ", " ", false, true, render_llava_med},
      {"gemma3", "<image_soft_token>", "<end_of_turn>", "", "", true, false, render_gemma3},
  };
  return kTemplates;
}

const ChatTemplate& chat_template(std::string_view name) {
  for (const ChatTemplate& chat : chat_templates())
    if (chat.name == name) return chat;
  throw_invalid("there is no chat template '{}'; known are {}", name, known_names());
}

const ChatTemplate& load_chat_template(const fs::path& folder) {
  const std::string text = template_text(folder);
  const std::string hash = text.empty() ? "" : sha256_text(text);
  if (!text.empty()) {
    for (const ChatTemplate& chat : chat_templates())
      for (const std::string_view image : {chat.image_token, kPatchToken})
        if (text == chat_template_jinja(chat, image)) return chat;
    for (const KnownText& known : kKnownTexts)
      if (known.sha256 == hash) return chat_template(known.name);
  }
  const std::string_view name = name_of_family(read_object(folder / "config.json"));
  if (name.empty())
    throw_failure(
        "cannot tell how {} writes conversations: {}, and config.json names no known model_type; known are {}",
        folder.string(), text.empty() ? "it has no chat template" : "its chat template is none of the known ones",
        known_names());
  if (!text.empty())
    spdlog::warn(
        "{}: the chat template (SHA-256 {}) is none of the known ones; conversations are written as {} does, which may "
        "differ from it",
        folder.string(), hash.substr(0, 12), name);
  return chat_template(name);
}

Prompt build_prompt(const Tokenizer& tokenizer, const ChatTemplate& chat, const std::vector<Message>& messages,
                    const ChatImages& images, bool add_generation_prompt) {
  const Parts parts = chat.render(messages, add_generation_prompt);
  const auto count = std::count_if(parts.begin(), parts.end(), [](const ChatPart& part) { return part.is_image; });
  if (count != static_cast<std::ptrdiff_t>(images.num_tokens.size()))
    throw_invalid("the conversation holds {} pictures, but the numbers of image tokens are given for {}", count,
                  images.num_tokens.size());
  Prompt prompt;
  if (!chat.writes_begin) append(prompt, tokenizer.begin_ids(), false);
  TextPlace place = TextPlace::kStart;
  std::size_t image = 0;
  for (const ChatPart& part : parts) {
    if (!part.is_image) {
      const auto ids = tokenizer.encode(part.text, place);
      append(prompt, ids, part.loss);
      if (!ids.empty()) place = tokenizer.is_added(ids.back()) ? TextPlace::kAfterToken : TextPlace::kInside;
      continue;
    }
    const std::int64_t id = images.token_id ? *images.token_id : tokenizer.token_id(chat.image_token);
    for (std::int64_t i = 0; i < images.num_tokens[image]; ++i)
      prompt.image_rows.push_back(static_cast<std::int64_t>(prompt.ids.size()) + i);
    append(prompt, std::vector<std::int64_t>(static_cast<std::size_t>(images.num_tokens[image]), id), false);
    ++image;
    place = chat.afresh_behind_image ? TextPlace::kStart : TextPlace::kAfterToken;
  }
  return prompt;
}

Prompt chat_prompt(const Tokenizer& tokenizer, const ChatTemplate& chat, const std::string& system,
                   const std::string& question, const ChatImages& images) {
  std::vector<Message> messages;
  if (!system.empty()) messages.push_back({Role::kSystem, {{MessagePart::Kind::kText, system}}});
  Message& user = messages.emplace_back();
  for (std::size_t i = 0; i < images.num_tokens.size(); ++i) user.parts.push_back(MessagePart::image());
  user.parts.push_back({MessagePart::Kind::kText, question});
  return build_prompt(tokenizer, chat, messages, images, true);
}

std::vector<std::int64_t> chat_answer(const Tokenizer& tokenizer, const ChatTemplate& chat, const std::string& answer) {
  std::string text(chat.answer_prefix);
  text += answer;
  text += chat.answer_suffix;
  // Markers that end a generation prompt are added tokens only with a line break behind them.
  std::vector<std::int64_t> ids = tokenizer.encode(text, TextPlace::kInside);
  ids.push_back(tokenizer.token_id(chat.end_of_turn));
  return ids;
}

Prompt chat_prompt(const Tokenizer& tokenizer, const std::string& system, const std::string& question,
                   const std::vector<std::int64_t>& num_image_tokens) {
  return chat_prompt(tokenizer, chat_template("thinkvg"), system, question, {num_image_tokens, std::nullopt});
}

std::vector<std::int64_t> chat_answer(const Tokenizer& tokenizer, const std::string& answer) {
  return chat_answer(tokenizer, chat_template("thinkvg"), answer);
}

std::string chat_template_jinja() {
  const ChatTemplate& chat = chat_template("thinkvg");
  return chat_template_jinja(chat, chat.image_token);
}

std::string chat_template_jinja(const ChatTemplate& chat, std::string_view image_token) {
  // A message as LLaVA's own code puts it: pictures, then text.
  const std::string words =
      "{% macro words(message) %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
      "{% for part in message['content'] %}{% if part['type'] == 'image' %}" +
      std::string(image_token) +
      "\n{% endif %}{% endfor %}"
      "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
      "{% endif %}{% endmacro %}";
  if (chat.name == "thinkvg")
    return "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
           "{% if message['content'] is string %}{{ message['content'] }}"
           "{% else %}{% for part in message['content'] %}"
           "{% if part['type'] == 'image' or 'image' in part %}<|vision_start|>" +
           std::string(image_token) +
           "<|vision_end|>"
           "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
           "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  if (chat.name == "llava_v1")
    return words + "{% if messages[0]['role'] == 'system' %}{{ words(messages[0]) }}{% else %}" +
           std::string(kLlavaSystem) +
           "{% endif %}{{ ' ' }}{% for message in messages %}"
           "{% if message['role'] == 'user' %}USER: {{ words(message) }}{{ ' ' }}"
           "{% elif message['role'] == 'assistant' %}ASSISTANT: {{ words(message) }}</s>{% endif %}{% endfor %}"
           "{% if add_generation_prompt %}ASSISTANT:{% endif %}";
  if (chat.name == "llava_med")
    return words +
           "{% for message in messages %}{% if message['role'] == 'user' %}[INST]{{ ' ' }}"
           "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}<<SYS>>\n{{ words(messages[0]) "
           "}}\n<</SYS>>\n\n"
           "{% endif %}{{ words(message) }}{{ ' [/INST]' }}"
           "{% elif message['role'] == 'assistant' %}{{ ' ' + words(message) + ' </s>' }}{% endif %}{% endfor %}";
  return {};
}

}  // namespace thinkvg::text
