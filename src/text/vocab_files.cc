#include <algorithm>
#include <array>
#include <charconv>

#include "text/readers.h"
#include "text/unicode.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg::text {
namespace fs = std::filesystem;
namespace {

// Names of Mistral's control tokens in files that do not list them.
constexpr std::array<const char*, 20> kTekkenSpecials = {"<unk>",
                                                         "<s>",
                                                         "</s>",
                                                         "[INST]",
                                                         "[/INST]",
                                                         "[AVAILABLE_TOOLS]",
                                                         "[/AVAILABLE_TOOLS]",
                                                         "[TOOL_RESULTS]",
                                                         "[/TOOL_RESULTS]",
                                                         "[TOOL_CALLS]",
                                                         "[IMG]",
                                                         "<pad>",
                                                         "[IMG_BREAK]",
                                                         "[IMG_END]",
                                                         "[PREFIX]",
                                                         "[MIDDLE]",
                                                         "[SUFFIX]",
                                                         "[SYSTEM_PROMPT]",
                                                         "[/SYSTEM_PROMPT]",
                                                         "[TOOL_CONTENT]"};

std::string from_base64(const fs::path& file, std::string_view text) {
  std::string bytes;
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=') break;
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0) throw_failure("{}: '{}' is no base64 text", file.string(), text);
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes += static_cast<char>(bits >> count & 0xFF);
    }
  }
  return bytes;
}

std::string to_byte_level(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += to_utf8(byte_level_character(static_cast<std::uint8_t>(c)));
  return text;
}

// Pieces as raw bytes, id by id in the order of their ranks.
void set_ranked_pieces(const Vocabulary& bytes, const std::vector<std::int64_t>& order, BpeTokenizerParts& parts) {
  parts.merges = all_merges(bytes, order, false);
  for (const std::int64_t id : order) parts.vocabulary.add(id, to_byte_level(bytes.piece(id)));
  parts.options.ignore_merges = true;
  parts.decoder.byte_level = true;
}

template <class Line>
void for_each_line(std::string_view text, Line&& line) {
  std::int64_t number = 1;
  for (std::size_t at = 0; at < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view content = text.substr(at, end - at);
    if (content.ends_with('\r')) content.remove_suffix(1);
    line(number, content);
    at = end + 1;
  }
}

}  // namespace

BpeTokenizerParts read_vocab_and_merges(const fs::path& vocab, const fs::path& merges, const std::string& pattern,
                                        bool nfc) {
  BpeTokenizerParts parts;
  // Not Json, which takes quadratic time for a hundred thousand keys.
  nlohmann::json pieces;
  try {
    pieces = nlohmann::json::parse(read_file(vocab));
    for (const auto& [piece, id] : pieces.items()) parts.vocabulary.add(id.get<std::int64_t>(), piece);
  } catch (const nlohmann::json::exception& error) {
    throw_failure("cannot read {}: {}", vocab.string(), error.what());
  }
  const std::string content = read_file(merges);
  for_each_line(content, [&](std::int64_t number, std::string_view line) {
    if (line.empty() || line.starts_with("#version")) return;
    const std::size_t cut = line.find(' ');
    const std::string left(line.substr(0, cut)), right(cut == line.npos ? "" : line.substr(cut + 1));
    const BpeMerge merge = {parts.vocabulary.id_of(left), parts.vocabulary.id_of(right),
                            parts.vocabulary.id_of(left + right), static_cast<std::int64_t>(parts.merges.size())};
    if (merge.left < 0 || merge.right < 0 || merge.result < 0)
      throw_failure("{}:{}: '{}' is no pair of pieces of {}", merges.string(), number, line, vocab.string());
    parts.merges.push_back(merge);
  });
  if (nfc) parts.normalizer.push_back({});
  parts.pre_tokenizer = byte_level_steps(pattern, false);
  parts.decoder.byte_level = true;
  return parts;
}

BpeTokenizerParts read_tiktoken(const fs::path& file, const std::string& pattern) {
  BpeTokenizerParts parts;
  Vocabulary bytes;
  std::vector<std::int64_t> order;
  const std::string content = read_file(file);
  for_each_line(content, [&](std::int64_t number, std::string_view line) {
    if (line.empty()) return;
    const std::size_t cut = line.find(' ');
    std::int64_t rank = -1;
    if (cut != line.npos) std::from_chars(line.data() + cut + 1, line.data() + line.size(), rank);
    if (rank < 0)
      throw_failure("{}:{}: expected a piece in base64 and its rank, found '{}'", file.string(), number,
                    line.substr(0, 80));
    bytes.add(rank, from_base64(file, line.substr(0, cut)));
    order.push_back(rank);
  });
  std::sort(order.begin(), order.end());
  set_ranked_pieces(bytes, order, parts);
  parts.pre_tokenizer = byte_level_steps(pattern, false);
  return parts;
}

BpeTokenizerParts read_tekken(const fs::path& file) {
  BpeTokenizerParts parts;
  const Json document = read_json_file(file);
  try {
    const Json& config = document.at("config");
    std::vector<std::string> specials;
    if (document.contains("special_tokens")) {
      for (const Json& token : document.at("special_tokens")) {
        const auto rank = token.at("rank").get<std::size_t>();
        if (specials.size() <= rank) specials.resize(rank + 1);
        specials[rank] = token.at("token_str").get<std::string>();
      }
    } else {
      specials.assign(kTekkenSpecials.begin(), kTekkenSpecials.end());
    }
    const auto number = [&](const char* key, std::size_t otherwise) {
      return config.contains(key) && !config.at(key).is_null() ? config.at(key).get<std::size_t>() : otherwise;
    };
    const std::size_t num_specials = number("default_num_special_tokens", specials.size());
    for (std::size_t i = specials.size(); i < num_specials; ++i) specials.push_back(fmt::format("<SPECIAL_{}>", i));
    const Json& pieces = document.at("vocab");
    const std::size_t count =
        std::min(pieces.size(), number("default_vocab_size", pieces.size() + num_specials) - num_specials);
    Vocabulary bytes;
    std::vector<std::int64_t> order;
    for (std::size_t i = 0; i < count; ++i) {
      order.push_back(static_cast<std::int64_t>(num_specials + i));
      bytes.add(order.back(), from_base64(file, pieces[i].at("token_bytes").get<std::string>()));
    }
    set_ranked_pieces(bytes, order, parts);
    for (std::size_t i = 0; i < specials.size(); ++i)
      parts.added.push_back({static_cast<std::int64_t>(i), specials[i], false, false, false, false, true});
    parts.pre_tokenizer = byte_level_steps(config.at("pattern").get<std::string>(), false);
  } catch (const Json::exception& error) {
    throw_failure("cannot read {}: {}", file.string(), error.what());
  }
  return parts;
}

}  // namespace thinkvg::text
