#include <gmock/gmock.h>

#include <map>

#include "thinkvg/core/json.h"
#include "thinkvg/text/chat.h"

namespace thinkvg::text {
namespace {
namespace fs = std::filesystem;

const fs::path kData = THINKVG_TEST_DATA;

std::vector<Message> messages_of(const Json& rows) {
  std::vector<Message> messages;
  for (const Json& row : rows) {
    Message& message = messages.emplace_back();
    const std::string role = row.at("role");
    message.role = role == "system" ? Role::kSystem : role == "user" ? Role::kUser : Role::kAssistant;
    for (const Json& part : row.at("parts"))
      message.parts.push_back(part.is_null() ? MessagePart::image()
                                             : MessagePart{MessagePart::Kind::kText, part.get<std::string>()});
  }
  return messages;
}

// The template's own text: pictures by the one marker that it writes for each.
std::string text_of(const ChatTemplate& chat, const std::vector<Message>& messages, bool add_generation_prompt) {
  std::string text;
  for (const ChatPart& part : chat.render(messages, add_generation_prompt))
    text += part.is_image ? std::string(chat.image_token) : part.text;
  if (chat.name != "gemma3") return text;
  // Its processor, not its template, writes what stands around a picture.
  const std::string around = "\n\n<start_of_image><image_soft_token><end_of_image>\n\n";
  for (std::size_t at = 0; (at = text.find(around, at)) != std::string::npos;)
    text.replace(at, around.size(), "<start_of_image>");
  return text;
}

TEST(ChatParity, TextAndIdsAreApplyChatTemplates) {
  const Json cases = read_json_file(kData / "chat" / "cases.json");
  std::map<std::string, std::unique_ptr<Tokenizer>> tokenizers;
  std::map<std::string, int> count;
  for (const Json& one : cases) {
    const std::string name = one.at("template");
    const ChatTemplate& chat = chat_template(name);
    auto& tokenizer = tokenizers[one.at("tokenizer")];
    if (!tokenizer) tokenizer = load_tokenizer(kData / "tokenizers" / one.at("tokenizer").get<std::string>());
    const auto messages = messages_of(one.at("messages"));
    const bool add_generation_prompt = one.at("add_generation_prompt");
    SCOPED_TRACE(name + ": " + one.at("text").dump());
    EXPECT_EQ(text_of(chat, messages, add_generation_prompt), one.at("text").get<std::string>());

    ChatImages images{one.at("num_tokens").get<std::vector<std::int64_t>>(), std::nullopt};
    if (!one.at("image_id").is_null()) images.token_id = one.at("image_id").get<std::int64_t>();
    const Prompt prompt = build_prompt(*tokenizer, chat, messages, images, add_generation_prompt);
    EXPECT_EQ(prompt.ids, one.at("ids").get<std::vector<std::int64_t>>());

    std::int64_t num_image_tokens = 0;
    for (const std::int64_t n : images.num_tokens) num_image_tokens += n;
    EXPECT_EQ(static_cast<std::int64_t>(prompt.image_rows.size()), num_image_tokens);
    for (const std::int64_t row : prompt.image_rows)
      EXPECT_EQ(prompt.ids.at(static_cast<std::size_t>(row)),
                images.token_id ? *images.token_id : tokenizer->token_id(chat.image_token));
    ASSERT_EQ(prompt.loss_mask.size(), prompt.ids.size());
    std::vector<std::int64_t> learned;
    for (std::size_t i = 0; i < prompt.ids.size(); ++i)
      if (prompt.loss_mask[i] != 0) learned.push_back(prompt.ids[i]);
    std::string expected = one.at("learned");
    std::string text = tokenizer->decode(learned, true);
    // Decoders of the sentencepiece kind take one space off the front.
    for (std::string* side : {&expected, &text})
      if (side->starts_with(' ')) side->erase(0, 1);
    EXPECT_EQ(text, expected);
    ++count[name];
  }
  for (const ChatTemplate& chat : chat_templates()) EXPECT_GE(count[std::string(chat.name)], 30) << chat.name;
}

// An answer behind a generation prompt has the ids of the whole conversation.
TEST(ChatParity, PromptAndAnswerAreTheConversation) {
  const Json cases = read_json_file(kData / "chat" / "cases.json");
  std::map<std::string, std::unique_ptr<Tokenizer>> tokenizers;
  int count = 0;
  for (const Json& one : cases) {
    const ChatTemplate& chat = chat_template(one.at("template").get<std::string>());
    // The Hugging Face template of LLaVA-1.5 ends answers with a space, its models with </s>.
    if (one.at("add_generation_prompt") || chat.name == "llava_vicuna") continue;
    auto& tokenizer = tokenizers[one.at("tokenizer")];
    if (!tokenizer) tokenizer = load_tokenizer(kData / "tokenizers" / one.at("tokenizer").get<std::string>());
    auto messages = messages_of(one.at("messages"));
    ChatImages images{one.at("num_tokens").get<std::vector<std::int64_t>>(), 3};
    const Prompt whole = build_prompt(*tokenizer, chat, messages, images, false);
    std::string answer = messages.back().parts.front().text;
    if (chat.name == "gemma3") answer.erase(answer.find_last_not_of(' ') + 1);
    messages.pop_back();
    std::vector<std::int64_t> ids = build_prompt(*tokenizer, chat, messages, images, true).ids;
    const auto answer_ids = chat_answer(*tokenizer, chat, answer);
    ids.insert(ids.end(), answer_ids.begin(), answer_ids.end());
    ASSERT_LE(ids.size(), whole.ids.size());
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), whole.ids.begin())) << chat.name << ": " << one.at("text");
    ++count;
  }
  EXPECT_GT(count, 80);
}

}  // namespace
}  // namespace thinkvg::text
