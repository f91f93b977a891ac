#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
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

// A conversation, as apply_chat_template() takes it.
enum class Role { kSystem, kUser, kAssistant };
struct MessagePart {
  enum class Kind { kText, kImage };
  Kind kind = Kind::kText;
  std::string text;  // of kText

  static MessagePart image() { return {Kind::kImage, {}}; }
};
struct Message {
  Role role = Role::kUser;
  std::vector<MessagePart> parts;
};

// A conversation as a model family writes it: text with its markers, and the places of pictures.
struct ChatPart {
  std::string text;
  bool is_image = false;
  bool loss = false;  // what the assistant says, and its end of turn
};

// How a model family writes conversations. The known ones are in chat_templates().
struct ChatTemplate {
  std::string_view name;
  std::string_view image_token;  // stands once for each image token of a picture
  std::string_view end_of_turn;  // ends an answer: generation stops there
  // Around an answer behind the generation prompt, and learned with it: LLaVA's " " behind "ASSISTANT:".
  std::string_view answer_prefix;
  std::string_view answer_suffix;
  bool writes_begin;         // the text itself begins with the begin token
  bool afresh_behind_image;  // the text behind a picture is tokenized as if it stood alone (LLaVA's own code)
  // The text of transformers' apply_chat_template(add_generation_prompt=..), or of the released code where a family has
  // no template. Throws std::invalid_argument where the template does.
  std::vector<ChatPart> (*render)(const std::vector<Message>& messages, bool add_generation_prompt);
};

// thinkvg        ChatML without a system line of its own: the models that `thinkvg init` makes
// qwen2_vl       Qwen2-VL and Qwen2.5-VL
// qwen3_vl       Qwen3-VL
// llava_vicuna   LLaVA-1.5 in the Hugging Face layout (llava-hf)
// llava_mistral  the same with Mistral (llava-v1.6-mistral)
// llava_v1       LLaVA 1.5 as released: conversation `v1`
// llava_med      LLaVA-Med v1.5 as released: conversation `mistral_instruct`
// gemma3         Gemma 3, MedGemma
const std::vector<ChatTemplate>& chat_templates();
// What LLaVA's own training may have added to its vocabulary for the pieces of a picture.
inline constexpr std::string_view kPatchToken = "<im_patch>";
// Throws std::invalid_argument that lists the known names.
const ChatTemplate& chat_template(std::string_view name);
// The template of a model folder: the known one whose Jinja text the folder carries (chat_template.jinja,
// chat_template.json, tokenizer_config.json), else the one of config.json's model_type; a warning is logged where the
// folder carries another text than that one's. Throws std::runtime_error where nothing tells.
const ChatTemplate& load_chat_template(const std::filesystem::path& folder);

// A conversation as ids.
struct Prompt {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> image_rows;  // places in `ids` that hold image tokens, in order
  std::vector<std::uint8_t> loss_mask;   // 1 where `ids` holds what the assistant says
};

struct ChatImages {
  std::vector<std::int64_t> num_tokens;  // of each picture, in order
  std::optional<std::int64_t> token_id;  // where the tokenizer has no image token (LLaVA as released)
};

// Renders and tokenizes. The tokenizer's begin ids are put in front, where the template does not write them itself.
// What is learned is tokenized apart from what is not, just as an answer is generated behind its prompt; that gives the
// same ids as tokenizing all at once, except where an answer begins with a line break.
// Throws std::invalid_argument where the number of pictures differs from `images.num_tokens`.
Prompt build_prompt(const Tokenizer& tokenizer, const ChatTemplate& chat, const std::vector<Message>& messages,
                    const ChatImages& images, bool add_generation_prompt);

// One user turn, ready for a completion to follow: pictures, then the question; a system line where `system` is not
// empty.
Prompt chat_prompt(const Tokenizer& tokenizer, const ChatTemplate& chat, const std::string& system,
                   const std::string& question, const ChatImages& images);
// The ids of an answer behind such a prompt: its text and the end of the turn.
std::vector<std::int64_t> chat_answer(const Tokenizer& tokenizer, const ChatTemplate& chat, const std::string& answer);

// The same for the template `thinkvg`.
Prompt chat_prompt(const Tokenizer& tokenizer, const std::string& system, const std::string& question,
                   const std::vector<std::int64_t>& num_image_tokens);
std::vector<std::int64_t> chat_answer(const Tokenizer& tokenizer, const std::string& answer);

// The Jinja form of a template that no released folder carries, for transformers: thinkvg, llava_v1, llava_med; empty
// for others. It renders what `render` does, a picture as `image_token`.
std::string chat_template_jinja(const ChatTemplate& chat, std::string_view image_token);
std::string chat_template_jinja();  // of thinkvg

}  // namespace thinkvg::text
