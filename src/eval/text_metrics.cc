#include "thinkvg/eval/text_metrics.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <unordered_map>

#include "thinkvg/core/error.h"
#include "thinkvg/grounding/answer.h"

namespace thinkvg::eval {
namespace {

// Bytes of the character that starts at `at`; 1 where it is not UTF-8.
std::size_t character_length(std::string_view text, std::size_t at) {
  const auto byte = static_cast<unsigned char>(text[at]);
  std::size_t length = 1;
  if (byte >= 0xF0 && byte < 0xF8) {
    length = 4;
  } else if (byte >= 0xE0) {
    length = 3;
  } else if (byte >= 0xC0) {
    length = 2;
  }
  if (byte >= 0xF8 || at + length > text.size()) return 1;
  for (std::size_t k = 1; k < length; ++k) {
    if ((static_cast<unsigned char>(text[at + k]) & 0xC0) != 0x80) return 1;
  }
  return length;
}

// Bytes of the white-space character at `at` by Python's str.isspace, or 0.
std::size_t space_length(std::string_view text, std::size_t at) {
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte == ' ' || (byte >= 9 && byte <= 13) || (byte >= 0x1C && byte <= 0x1F)) return 1;
  if (byte < 0xC2) return 0;
  const std::string_view character = text.substr(at, character_length(text, at));
  if (character == "\u0085" || character == "\u00A0") return 2;
  if (character == "\u1680" || character == "\u2028" || character == "\u2029" || character == "\u202F" ||
      character == "\u205F" || character == "\u3000") {
    return 3;
  }
  const bool general = character.size() == 3 && character.substr(0, 2) == "\xE2\x80";
  return general && static_cast<unsigned char>(character[2]) >= 0x80 && static_cast<unsigned char>(character[2]) <= 0x8A
             ? 3
             : 0;
}

template <class Use>
void for_each_word(std::string_view text, const Use& use) {
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t space = space_length(text, at);
    if (space == 0) {
      at += character_length(text, at);
      continue;
    }
    if (at > begin) use(text.substr(begin, at - begin));
    at += space;
    begin = at;
  }
  if (text.size() > begin) use(text.substr(begin));
}

std::vector<std::string_view> split_words(std::string_view text) {
  std::vector<std::string_view> words;
  for_each_word(text, [&](std::string_view word) { words.push_back(word); });
  return words;
}

std::string join_words(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for_each_word(text, [&](std::string_view word) {
    if (!out.empty()) out += ' ';
    out += word;
  });
  return out;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string_view strip_end(std::string_view text) {
  std::size_t end = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t space = space_length(text, at);
    at += space > 0 ? space : character_length(text, at);
    if (space == 0) end = at;
  }
  return text.substr(0, end);
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// Punctuation that mteval-v13a sets apart everywhere; apostrophe, comma, hyphen and full stop have rules of their own.
bool stands_alone(char c) {
  return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') || (c >= '(' && c <= '+') ||
         (c >= ':' && c <= '@') || c == '/';
}

std::string tokenize_13a(std::string_view line) {
  std::string text(line);
  replace_all(text, "<skipped>", "");
  replace_all(text, "-\n", "");
  std::replace(text.begin(), text.end(), '\n', ' ');
  if (text.find('&') != std::string::npos) {
    replace_all(text, "&quot;", "\"");
    replace_all(text, "&amp;", "&");
    replace_all(text, "&lt;", "<");
    replace_all(text, "&gt;", ">");
  }
  std::string apart;
  apart.reserve(text.size() * 2 + 2);
  apart += ' ';
  for (const char c : " " + text + " ") {
    if (stands_alone(c)) {
      apart += ' ';
      apart += c;
      apart += ' ';
    } else {
      apart += c;
    }
  }
  const auto is_point = [](char c) { return c == '.' || c == ','; };
  // Each rule reads what the one before it wrote; matches do not overlap, so two characters are taken at a time.
  std::string after;
  after.reserve(apart.size() * 2);
  for (std::size_t i = 0; i < apart.size();) {
    if (i + 1 < apart.size() && !is_digit(apart[i]) && is_point(apart[i + 1])) {
      after += apart[i];
      after += ' ';
      after += apart[i + 1];
      after += ' ';
      i += 2;
    } else {
      after += apart[i++];
    }
  }
  std::string before;
  before.reserve(after.size() * 2);
  for (std::size_t i = 0; i < after.size();) {
    if (i + 1 < after.size() && is_point(after[i]) && !is_digit(after[i + 1])) {
      before += ' ';
      before += after[i];
      before += ' ';
      before += after[i + 1];
      i += 2;
    } else {
      before += after[i++];
    }
  }
  std::string dashed;
  dashed.reserve(before.size() * 2);
  for (std::size_t i = 0; i < before.size();) {
    if (i + 1 < before.size() && is_digit(before[i]) && before[i + 1] == '-') {
      dashed += before[i];
      dashed += " - ";
      i += 2;
    } else {
      dashed += before[i++];
    }
  }
  return join_words(dashed);
}

// Words as small numbers, the same for both texts, so that n-grams compare as integers.
class Vocabulary {
 public:
  std::vector<std::uint32_t> ids(std::string_view tokenized) {
    std::vector<std::uint32_t> out;
    for (const std::string_view word : split_words(tokenized)) {
      out.push_back(numbers_.try_emplace(word, static_cast<std::uint32_t>(numbers_.size())).first->second);
    }
    return out;
  }

 private:
  std::unordered_map<std::string_view, std::uint32_t> numbers_;
};

using Gram = std::array<std::uint32_t, kMaxBleuOrder>;

// All n-grams of one order, sorted.
std::vector<Gram> grams(const std::vector<std::uint32_t>& words, std::size_t order) {
  std::vector<Gram> out;
  for (std::size_t i = 0; i + order <= words.size(); ++i) {
    Gram gram{};
    std::copy_n(words.begin() + static_cast<std::ptrdiff_t>(i), order, gram.begin());
    out.push_back(gram);
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Size of the multiset intersection of two sorted lists.
double common(const std::vector<Gram>& a, const std::vector<Gram>& b) {
  double count = 0;
  for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    if (a[i] < b[j]) {
      ++i;
    } else if (b[j] < a[i]) {
      ++j;
    } else {
      ++count, ++i, ++j;
    }
  }
  return count;
}

double smooth_value(const BleuOptions& options) {
  if (options.smooth_value >= 0) return options.smooth_value;
  return options.smooth == "floor" ? 0.1 : 1.0;
}

std::vector<std::string> rouge_words(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  const auto end_word = [&] {
    if (!word.empty()) words.push_back(std::move(word));
    word.clear();
  };
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = character_length(text, at);
    const std::string_view character = text.substr(at, length);
    const char c = lower(text[at]);
    at += length;
    if (length == 1 && ((c >= 'a' && c <= 'z') || is_digit(c))) {
      word += c;
    } else if (character == "\u212A") {  // the Kelvin sign's lower case is an ASCII letter
      word += 'k';
    } else if (character == "\u0130") {  // and so begins that of the dotted capital I
      word += 'i';
      end_word();
    } else {
      end_word();
    }
  }
  end_word();
  return words;
}

std::size_t common_subsequence(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::vector<std::size_t> row(b.size() + 1, 0);
  for (const std::string& word : a) {
    std::size_t diagonal = 0;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = word == b[j - 1] ? diagonal + 1 : std::max(above, row[j - 1]);
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

void BleuOptions::check() const {
  if (tokenize != "13a" && tokenize != "char" && tokenize != "none") {
    throw_invalid("unknown BLEU tokenizer '{}'; known are: 13a, char, none", tokenize);
  }
  if (smooth != "exp" && smooth != "floor" && smooth != "add-k" && smooth != "none") {
    throw_invalid("unknown BLEU smoothing '{}'; known are: exp, floor, add-k, none", smooth);
  }
}

std::string BleuOptions::signature() const {
  std::string value;
  if (smooth == "floor" || smooth == "add-k") value = fmt::format("[{:.2f}]", eval::smooth_value(*this));
  return fmt::format("case:{}|eff:no|tok:{}|smooth:{}{}", lowercase ? "lc" : "mixed", tokenize, smooth, value);
}

BleuStats& BleuStats::operator+=(const BleuStats& other) {
  predicted_length += other.predicted_length;
  reference_length += other.reference_length;
  for (std::size_t n = 0; n < correct.size(); ++n) {
    correct[n] += other.correct[n];
    total[n] += other.total[n];
  }
  return *this;
}

std::string bleu_tokenize(std::string_view text, const BleuOptions& options) {
  std::string lowered(strip_end(text));
  if (options.lowercase) std::transform(lowered.begin(), lowered.end(), lowered.begin(), lower);
  if (options.tokenize == "13a") return tokenize_13a(lowered);
  if (options.tokenize == "none") return lowered;
  std::string out;
  for (std::size_t at = 0; at < lowered.size();) {
    const std::size_t length = character_length(lowered, at);
    if (at > 0) out += ' ';
    out += std::string_view(lowered).substr(at, length);
    at += length;
  }
  return out;
}

BleuStats bleu_stats(std::string_view predicted, std::string_view reference, const BleuOptions& options) {
  const std::string p = bleu_tokenize(predicted, options), r = bleu_tokenize(reference, options);
  Vocabulary vocabulary;
  const std::vector<std::uint32_t> predicted_words = vocabulary.ids(p), reference_words = vocabulary.ids(r);
  BleuStats stats;
  stats.predicted_length = static_cast<double>(predicted_words.size());
  stats.reference_length = static_cast<double>(reference_words.size());
  for (std::size_t n = 0; n < kMaxBleuOrder; ++n) {
    const std::vector<Gram> found = grams(predicted_words, n + 1);
    stats.total[n] = static_cast<double>(found.size());
    stats.correct[n] = common(found, grams(reference_words, n + 1));
  }
  return stats;
}

double bleu(const BleuStats& stats, int order, const BleuOptions& options, bool effective_order) {
  if (order < 1 || order > kMaxBleuOrder) throw_invalid("BLEU's order is 1 to {}, not {}", kMaxBleuOrder, order);
  if (std::all_of(stats.correct.begin(), stats.correct.begin() + order, [](double count) { return count == 0; })) {
    return 0;
  }
  double brevity = 1;
  if (stats.predicted_length < stats.reference_length) {
    brevity = stats.predicted_length > 0 ? std::exp(1 - stats.reference_length / stats.predicted_length) : 0;
  }
  const double extra = smooth_value(options);
  double halving = 1, log_sum = 0;
  int used = order, done = 0;
  for (int n = 1; n <= order; ++n) {
    double correct = stats.correct[static_cast<std::size_t>(n - 1)];
    double total = stats.total[static_cast<std::size_t>(n - 1)];
    if (options.smooth == "add-k" && n > 1) {
      correct += extra;
      total += extra;
    }
    if (total == 0) break;
    if (effective_order) used = n;
    double precision = correct / total;
    if (correct == 0 && options.smooth == "exp") {
      halving *= 2;
      precision = 1 / (halving * total);
    } else if (correct == 0 && options.smooth == "floor") {
      precision = extra / total;
    }
    if (precision == 0) return 0;
    log_sum += std::log(precision);
    done = n;
  }
  // An order that the text is too short for has precision 0.
  if (done < used) return 0;
  return brevity * std::exp(log_sum / used);
}

double rouge_l(std::string_view predicted, std::string_view reference) {
  const std::vector<std::string> p = rouge_words(predicted), r = rouge_words(reference);
  if (p.empty() || r.empty()) return 0;
  const auto length = static_cast<double>(common_subsequence(r, p));
  if (length == 0) return 0;
  const double precision = length / static_cast<double>(p.size()), recall = length / static_cast<double>(r.size());
  return 2 * precision * recall / (precision + recall);
}

TokenOverlap token_overlap(std::string_view predicted, std::string_view reference) {
  const std::string p = grounding::normalize_text(predicted), r = grounding::normalize_text(reference);
  std::vector<std::string_view> predicted_words = split_words(p), reference_words = split_words(r);
  if (predicted_words.empty() && reference_words.empty()) return {1, 1, 1};
  if (predicted_words.empty() || reference_words.empty()) return {};
  std::sort(predicted_words.begin(), predicted_words.end());
  std::sort(reference_words.begin(), reference_words.end());
  std::vector<std::string_view> both;
  std::set_intersection(predicted_words.begin(), predicted_words.end(), reference_words.begin(), reference_words.end(),
                        std::back_inserter(both));
  if (both.empty()) return {};
  const auto count = static_cast<double>(both.size());
  const double precision = count / static_cast<double>(predicted_words.size());
  const double recall = count / static_cast<double>(reference_words.size());
  return {precision, recall, 2 * precision * recall / (precision + recall)};
}

bool equal_answers(std::string_view predicted, std::string_view reference) {
  const auto plain = [](std::string_view text) {
    std::string out = join_words(text);
    std::transform(out.begin(), out.end(), out.begin(), lower);
    if (out.ends_with('.')) out.pop_back();
    while (out.ends_with(' ')) out.pop_back();
    return out;
  };
  return plain(predicted) == plain(reference);
}

std::int64_t count_words(std::string_view text) {
  std::int64_t count = 0;
  for_each_word(text, [&](std::string_view) { ++count; });
  return count;
}

}  // namespace thinkvg::eval
