#include "thinkvg/text/chat.h"

#include <gmock/gmock.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <sstream>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

namespace thinkvg::text {
namespace {
namespace fs = std::filesystem;

Message says(Role role, const std::string& text) { return {role, {{MessagePart::Kind::kText, text}}}; }

TEST(Chat, NumberOfPicturesMustFit) {
  const auto tokenizer = load_tokenizer(fs::path(THINKVG_TEST_DATA) / "tokenizers" / "qwen");
  const std::vector<Message> messages = {{Role::kUser, {MessagePart::image(), {MessagePart::Kind::kText, "x"}}}};
  EXPECT_THROW(build_prompt(*tokenizer, chat_template("qwen2_vl"), messages, {{}, std::nullopt}, true),
               std::invalid_argument);
  EXPECT_THROW(build_prompt(*tokenizer, chat_template("qwen2_vl"), messages, {{2, 2}, std::nullopt}, true),
               std::invalid_argument);
  EXPECT_EQ(build_prompt(*tokenizer, chat_template("qwen2_vl"), messages, {{4}, std::nullopt}, true).image_rows.size(),
            4u);
  // This tokenizer has no <image>.
  EXPECT_THROW(build_prompt(*tokenizer, chat_template("llava_vicuna"), messages, {{4}, std::nullopt}, true),
               std::invalid_argument);
}

TEST(Chat, TurnsMustAlternateWhereTheTemplateWantsIt) {
  const std::vector<Message> twice = {says(Role::kUser, "a"), says(Role::kUser, "b")};
  for (const char* name : {"gemma3", "llava_med", "llava_v1"})
    EXPECT_THROW(chat_template(name).render(twice, true), std::invalid_argument) << name;
  EXPECT_NO_THROW(chat_template("qwen2_vl").render(twice, true));
  EXPECT_THROW(chat_template("qwen2"), std::invalid_argument);
}

class ChatOfFolder : public testing::Test {
 protected:
  void SetUp() override {
    before_ = spdlog::default_logger();
    spdlog::set_default_logger(
        std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_)));
  }
  void TearDown() override { spdlog::set_default_logger(before_); }
  void config(const Json& config) { write_file_atomically(folder_ / "config.json", config.dump()); }

  test::TemporaryFolder folder_;
  std::ostringstream log_;
  std::shared_ptr<spdlog::logger> before_;
};

TEST_F(ChatOfFolder, OwnTemplateIsKnownByItsText) {
  config({{"model_type", "qwen2_5_vl"}});
  EXPECT_EQ(load_chat_template(folder_.path()).name, "qwen2_vl");
  write_file_atomically(folder_ / "tokenizer_config.json", Json({{"chat_template", chat_template_jinja()}}).dump());
  EXPECT_EQ(load_chat_template(folder_.path()).name, "thinkvg");
  EXPECT_EQ(log_.str(), "");
}

TEST_F(ChatOfFolder, AnotherTemplateGivesAWarning) {
  config({{"model_type", "gemma3"}});
  write_file_atomically(folder_ / "chat_template.json", R"({"chat_template": "{{ messages }}"})");
  EXPECT_EQ(load_chat_template(folder_.path()).name, "gemma3");
  EXPECT_THAT(log_.str(), testing::AllOf(testing::HasSubstr("none of the known ones"), testing::HasSubstr("gemma3")));
}

TEST_F(ChatOfFolder, FamilyTellsWhereThereIsNoTemplate) {
  for (const auto& [json, name] : std::vector<std::pair<Json, std::string>>{
           {{{"model_type", "qwen3_vl"}}, "qwen3_vl"},
           {{{"model_type", "llava_mistral"}, {"mm_vision_tower", "clip"}}, "llava_med"},
           {{{"model_type", "llava"}, {"mm_vision_tower", "clip"}}, "llava_v1"},
           {{{"model_type", "llava"}, {"text_config", {{"model_type", "llama"}}}}, "llava_vicuna"},
           {{{"model_type", "llava"}, {"text_config", {{"model_type", "mistral"}}}}, "llava_mistral"}}) {
    config(json);
    EXPECT_EQ(load_chat_template(folder_.path()).name, name);
  }
  config({{"model_type", "bert"}});
  EXPECT_THROW(load_chat_template(folder_.path()), std::runtime_error);
}

// llava-hf/llava-1.5-7b-hf's; line breaks in its texts are written as such.
TEST_F(ChatOfFolder, LlavaTextIsKnown) {
  write_file_atomically(
      folder_ / "chat_template.jinja",
      "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif "
      "%}{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') "
      "%}{{ '<image>\\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}{% for content "
      "in "
      "message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}{% "
      "for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] "
      "+ "
      "' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% "
      "endif %}\n");
  EXPECT_EQ(load_chat_template(folder_.path()).name, "llava_vicuna");
}

}  // namespace
}  // namespace thinkvg::text
