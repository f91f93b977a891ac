#include "thinkvg/text/tokenizer.h"

#include <gmock/gmock.h>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
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

TEST_F(TokenizerTest, UnknownPiecesAreErrorsAndUnknownIdsGiveNoText) {
  EXPECT_THROW(tokenizer_->token_id("<|no_such_piece|>"), std::invalid_argument);
  EXPECT_EQ(tokenizer_->find("<|no_such_piece|>"), std::nullopt);
  auto ids = tokenizer_->encode("yes");
  ids.insert(ids.begin() + 1, tokenizer_->vocab_size());  // a row of a padded embedding table
  EXPECT_EQ(tokenizer_->decode(ids), "yes");
  EXPECT_EQ(tokenizer_->piece(tokenizer_->vocab_size()), "");
  const std::vector<std::int64_t> negative = {-1};
  EXPECT_THROW(tokenizer_->decode(negative), std::invalid_argument);
  EXPECT_THROW(train_tokenizer({"a"}, {100}, folder_->path()), std::invalid_argument);
}

TEST_F(TokenizerTest, SpecialTokensAreNamed) {
  EXPECT_EQ(tokenizer_->named_token("eos_token"), tokenizer_->token_id("<|im_end|>"));
  EXPECT_EQ(tokenizer_->named_token("mask_token"), std::nullopt);
  EXPECT_TRUE(tokenizer_->is_special(tokenizer_->token_id("<|image_pad|>")));
  EXPECT_FALSE(tokenizer_->is_special(tokenizer_->token_id("<think>")));
  EXPECT_TRUE(tokenizer_->begin_ids().empty());
  EXPECT_TRUE(tokenizer_->end_ids().empty());
}

TEST_F(TokenizerTest, InvalidBytesBecomeReplacementCharacters) {
  for (const auto& [bytes, valid] :
       std::vector<std::pair<std::string, std::string>>{{"a\xffz", "a\uFFFDz"},
                                                        {"\xe2\x82", "\uFFFD"},
                                                        {"\xe2\x82z", "\uFFFDz"},
                                                        {"\xf0\x9f\x98", "\uFFFD"},
                                                        {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"},  // a surrogate
                                                        {"\xc0\xaf", "\uFFFD\uFFFD"},            // too long a form
                                                        {"\xf4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"}})
    EXPECT_EQ(tokenizer_->decode(tokenizer_->encode(bytes)), valid) << testing::PrintToString(bytes);
}

TEST_F(TokenizerTest, StreamGivesWholeCharactersOnly) {
  const std::string text = "Ünïcödé 肺 🫁<|im_end|>";
  const auto ids = tokenizer_->encode(text);
  ASSERT_GT(ids.size(), 15u);  // bytes
  const auto stream = tokenizer_->decode_stream();
  std::vector<std::string> parts;
  for (const std::int64_t id : ids)
    if (const std::string part = stream->add(id); !part.empty()) parts.push_back(part);
  EXPECT_THAT(parts, testing::ElementsAre("Ü", "n", "ï", "c", "ö", "d", "é", " ", "肺", " ", "🫁"));
  EXPECT_EQ(stream->finish(), "");
  const auto lung = tokenizer_->encode("肺");
  ASSERT_EQ(lung.size(), 3u);
  EXPECT_EQ(stream->add(lung[0]), "");
  EXPECT_EQ(stream->add(lung[1]), "");
  EXPECT_EQ(stream->finish(), "\uFFFD\uFFFD");  // one a byte, as Hugging Face does
  EXPECT_EQ(stream->add(lung[0]), "");
  EXPECT_EQ(stream->add(tokenizer_->token_id("2")), "\uFFFD2");
}

TEST_F(TokenizerTest, ManyThreadsGetTheSameIds) {
  std::vector<std::string> texts;
  for (int i = 0; i < 500; ++i) texts.push_back("The lung zone " + std::to_string(i * 7919) + " shows 肺 an opacity");
  const auto rows = tokenizer_->encode_batch(texts, 8);
  ASSERT_EQ(rows.size(), texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(rows[i], tokenizer_->encode(texts[i]));
  EXPECT_THROW(tokenizer_->encode_batch(texts, 0), std::invalid_argument);
}

// A folder with one file.
void expect_failure(const std::string& name, const std::string& content, const std::string& message) {
  const test::TemporaryFolder folder;
  if (!name.empty()) write_file_atomically(folder / name, content);
  try {
    load_tokenizer(folder.path());
    ADD_FAILURE() << "read " << content;
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(message));
  }
}

TEST(TokenizerFiles, ErrorsNameWhatIsSupported) {
  const std::string head = R"({"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []})";
  const std::string bytes = R"("decoder": {"type": "ByteLevel"})";
  expect_failure("", "", "expected tokenizer.json, vocab.json with merges.txt");
  expect_failure("tokenizer.json", "{\"model\": ", "at byte");
  expect_failure("tokenizer.json", R"({"model": {"type": "Unigram", "vocab": [["a", 0.5]]}})",
                 "the model 'Unigram' is not supported; supported are BPE");
  expect_failure("tokenizer.json", head + R"(, "normalizer": {"type": "Precompiled"}})",
                 "the normalizer 'Precompiled' is not supported; supported are NFC");
  expect_failure("tokenizer.json", head + R"(, "pre_tokenizer": {"type": "BertPreTokenizer"}})",
                 "the pre-tokenizer 'BertPreTokenizer' is not supported; supported are Split");
  expect_failure("tokenizer.json", head + R"(, "decoder": {"type": "WordPiece"}})", "the decoder 'WordPiece'");
  expect_failure("tokenizer.json", head + "}", "the decoder 'null'");
  expect_failure("tokenizer.json",
                 head +
                     R"(, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"}, )" +
                     bytes + "}",
                 "cannot compile the pattern (a");
  expect_failure("tokenizer.json",
                 head +
                     R"(, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated"}, )" +
                     bytes + "}",
                 "uses \\w, which is not supported");
  expect_failure("tokenizer.json", R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}, )" + bytes + "}",
                 "the merges name 'b', which the vocabulary lacks");
  expect_failure("tokenizer.model", "\n\x05nonsense", "as a sentencepiece model");
  expect_failure("tokenizer.model", "YQ== one\n", "expected a piece in base64 and its rank");
  expect_failure("cl100k_base.tiktoken", "YQ== 0\n", "the pattern that cuts words for this vocabulary is not known");
}

TEST(TokenizerFiles, ConfigAddsTokensAndBeginIds) {
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "tokenizer.json", R"({"added_tokens": [{"id": 2, "content": "<s>"}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel",
    "add_prefix_space": false, "use_regex": true}, "decoder": {"type": "ByteLevel"}})");
  write_file_atomically(folder / "tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": {"content": "</s>"},
    "add_bos_token": true, "added_tokens_decoder": {"5": {"content": "<box>", "special": false, "lstrip": true}},
    "extra_special_tokens": {"image": "<image>"}})");
  const auto tokenizer = load_tokenizer(folder.path());
  EXPECT_THAT(tokenizer->encode("a <box>b</s><image><s>"), testing::ElementsAre(0, 5, 1, 6, 7, 2));
  EXPECT_THAT(tokenizer->begin_ids(), testing::ElementsAre(2));
  EXPECT_TRUE(tokenizer->is_special(2));
  EXPECT_FALSE(tokenizer->is_special(5));
  EXPECT_EQ(tokenizer->vocab_size(), 8);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("b<box><image>")), "b<box>");
  write_file_atomically(folder / "tokenizer_config.json", R"({"added_tokens_decoder": {"x": {"content": "<box>"}}})");
  EXPECT_THROW(load_tokenizer(folder.path()), std::runtime_error);
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
