#include "thinkvg/text/tokenizer.h"

#include <gmock/gmock.h>

#include "tests/support/temporary_folder.h"
#include "thinkvg/text/chat.h"

namespace thinkvg::text {
namespace {

class TokenizerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new test::TemporaryFolder;
    std::vector<std::string> texts;
    for (int i = 0; i < 200; ++i)
      texts.push_back("<think>The left lower lung zone (region [" + std::to_string(i) +
                      ", 51, 190, 281]) shows an opacity.</think><response><answer>yes</answer></response>");
    train_tokenizer(texts, {420}, folder_->path());
    tokenizer_ = load_tokenizer(folder_->path()).release();
  }
  static void TearDownTestSuite() {
    delete tokenizer_;
    delete folder_;
  }
  static test::TemporaryFolder* folder_;
  static Tokenizer* tokenizer_;
};
test::TemporaryFolder* TokenizerTest::folder_ = nullptr;
Tokenizer* TokenizerTest::tokenizer_ = nullptr;

TEST_F(TokenizerTest, ComesBackAsItWent) {
  for (const std::string text :
       {"The left lower lung zone", " two  spaces ", "new\nline", "0123456789", "Ünïcödé 肺 🫁",
        "[51, 190, 140, 281]", "<think>x</think><response><answer>A, C</answer></response>", "\t", "a", ""})
    EXPECT_EQ(tokenizer_->decode(tokenizer_->encode(text)), text);
}

TEST_F(TokenizerTest, DigitsAndTagsArePiecesOfTheirOwn) {
  const auto ids = tokenizer_->encode("<answer>281</answer>");
  ASSERT_EQ(ids.size(), 5u);
  EXPECT_EQ(ids.front(), tokenizer_->token_id("<answer>"));
  EXPECT_EQ(ids[1], tokenizer_->token_id("2"));
  EXPECT_EQ(ids.back(), tokenizer_->token_id("</answer>"));
}

TEST_F(TokenizerTest, ChatMarkersAreOneIdAndLeftOutOfText) {
  const auto ids = tokenizer_->encode("yes<|im_end|>");
  EXPECT_EQ(ids.back(), tokenizer_->token_id("<|im_end|>"));
  EXPECT_EQ(tokenizer_->decode(ids), "yes");
  EXPECT_EQ(tokenizer_->decode(ids, true), "yes<|im_end|>");
}

TEST_F(TokenizerTest, UnknownPiecesAndIdsAreErrors) {
  EXPECT_THROW(tokenizer_->token_id("<|no_such_piece|>"), std::invalid_argument);
  const std::vector<std::int64_t> outside = {tokenizer_->vocab_size()};
  EXPECT_THROW(tokenizer_->decode(outside), std::invalid_argument);
  EXPECT_THROW(load_tokenizer(folder_->path() / "none"), std::runtime_error);
  EXPECT_THROW(train_tokenizer({"a"}, {100}, folder_->path()), std::invalid_argument);
}

TEST_F(TokenizerTest, PromptHasOneSlotAnImageToken) {
  const Prompt prompt = chat_prompt(*tokenizer_, "Be brief.", "Is there an opacity?", {3, 2});
  ASSERT_EQ(prompt.image_rows.size(), 5u);
  const std::int64_t image = tokenizer_->token_id("<|image_pad|>");
  EXPECT_EQ(std::count(prompt.ids.begin(), prompt.ids.end(), image), 5);
  for (const std::int64_t row : prompt.image_rows) EXPECT_EQ(prompt.ids[static_cast<std::size_t>(row)], image);
  EXPECT_EQ(tokenizer_->decode(prompt.ids, true),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|>"
            "<|image_pad|><|vision_end|><|vision_start|><|image_pad|><|image_pad|><|vision_end|>Is there an opacity?"
            "<|im_end|>\n<|im_start|>assistant\n");
  const Prompt text_only = chat_prompt(*tokenizer_, "", "Hello", {});
  EXPECT_TRUE(text_only.image_rows.empty());
  EXPECT_EQ(tokenizer_->decode(text_only.ids, true), "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
}

}  // namespace
}  // namespace thinkvg::text
