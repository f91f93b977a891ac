#include <gmock/gmock.h>

#include <cstring>

#include "tests/support/temporary_folder.h"
#include "text/unicode.h"
#include "thinkvg/core/files.h"
#include "thinkvg/text/tokenizer.h"

namespace thinkvg::text {
namespace {
namespace fs = std::filesystem;

const fs::path kData = fs::path(THINKVG_TEST_DATA) / "tokenizers";

std::uint32_t number_at(const std::string& bytes, std::size_t at) {
  std::uint32_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

const std::vector<std::string>& awkward_strings() {
  static const std::vector<std::string> kStrings = [] {
    const std::string bytes = read_file(kData / "strings.bin");
    std::vector<std::string> strings(number_at(bytes, 0));
    std::size_t at = 4;
    for (std::string& string : strings) {
      const std::size_t size = number_at(bytes, at);
      string = bytes.substr(at + 4, size);
      at += 4 + size;
    }
    return strings;
  }();
  return kStrings;
}

// The hash of tests/parity/write_tokenizers.py.
std::uint32_t hash_of(const std::vector<std::int64_t>& ids, const std::string& text) {
  std::uint64_t value = 0xCBF29CE484222325u;
  const auto add = [&](std::uint64_t byte) { value = (value ^ (byte & 0xFF)) * 0x100000001B3u; };
  for (const std::int64_t id : ids)
    for (int shift = 0; shift < 32; shift += 8) add(static_cast<std::uint64_t>(id) >> shift);
  add(0xFF);
  for (const char c : text) add(static_cast<std::uint8_t>(c));
  return static_cast<std::uint32_t>(value ^ value >> 32);
}

struct Case {
  std::string name;
  std::string wheel_file;  // empty: a small tokenizer in tests/data
  std::string file_name;   // its name in the folder
  std::string config;      // tokenizer_config.json
  std::string expected;    // whose hashes, if not `name`'s
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class TokenizerParity : public testing::TestWithParam<Case> {};

TEST_P(TokenizerParity, IdsAndTextAreHuggingFaces) {
  const Case& c = GetParam();
  const test::TemporaryFolder made;
  fs::path folder = kData / c.name;
  if (!c.wheel_file.empty()) {
    const fs::path source = fs::path(THINKVG_TEST_WHEELS) / c.wheel_file;
    if (!fs::exists(source)) GTEST_SKIP() << source << " is not installed: run third_party/install.sh";
    folder = made.path();
    fs::create_symlink(source, folder / c.file_name);
    if (!c.config.empty()) write_file_atomically(folder / "tokenizer_config.json", c.config);
  }
  const auto tokenizer = load_tokenizer(folder);
  const auto& strings = awkward_strings();
  const std::string hashes = read_file(kData / ((c.expected.empty() ? c.name : c.expected) + ".hashes"));
  ASSERT_GE(strings.size(), 10000u);
  ASSERT_EQ(hashes.size(), 4 * strings.size());
  const auto rows = tokenizer->encode_batch(strings, 3);
  const auto stream = tokenizer->decode_stream(true);
  int wrong = 0, wrong_streams = 0;
  for (std::size_t i = 0; i < strings.size(); ++i) {
    const auto ids = tokenizer->encode(strings[i]);
    const std::string text = tokenizer->decode(ids, true);
    if (ids != rows[i] || hash_of(ids, text) != number_at(hashes, 4 * i)) {
      if (++wrong <= 5)
        ADD_FAILURE() << "string " << i << ": " << testing::PrintToString(strings[i]) << " gives "
                      << testing::PrintToString(ids);
    }
    std::string streamed;
    bool is_whole = true;  // whether no part splits a character
    for (const std::int64_t id : ids) {
      const std::string part = stream->add(id);
      is_whole = is_whole && is_valid_utf8(part);
      streamed += part;
    }
    streamed += stream->finish();
    if ((streamed != text || !is_whole) && ++wrong_streams <= 5)
      ADD_FAILURE() << "string " << i << " streams as " << testing::PrintToString(streamed) << ", not "
                    << testing::PrintToString(text);
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(wrong_streams, 0);
}

constexpr const char* kSentencePiece =
    R"({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>")";

INSTANTIATE_TEST_SUITE_P(Small, TokenizerParity,
                         testing::Values(Case{"qwen", "", "", "", ""}, Case{"qwen_files", "", "", "", "qwen"},
                                         Case{"llama3", "", "", "", ""}, Case{"tekken_like", "", "", "", ""},
                                         Case{"flags", "", "", "", ""}, Case{"llama", "", "", "", ""},
                                         Case{"mistral", "", "", "", ""}, Case{"gemma", "", "", "", ""},
                                         Case{"metaspace", "", "", "", ""}),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Real, TokenizerParity,
    testing::Values(Case{"mistral_v1", "mistral_common/data/tokenizer.model.v1", "tokenizer.model",
                         std::string(kSentencePiece) + R"(, "legacy": false})", ""},
                    Case{"mistral_v1_legacy", "mistral_common/data/tokenizer.model.v1", "tokenizer.model",
                         std::string(kSentencePiece) + R"(, "legacy": true, "add_bos_token": true})", ""},
                    Case{"mistral_v3_no_prefix", "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3",
                         "tokenizer.model", std::string(kSentencePiece) + R"(, "add_prefix_space": false})", ""},
                    Case{"tekken", "mistral_common/data/tekken_240911.json", "tekken.json", "", ""},
                    Case{"qwen_tiktoken", "dashscope/resources/qwen.tiktoken", "qwen.tiktoken", "", ""}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace thinkvg::text
