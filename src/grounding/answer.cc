#include "thinkvg/grounding/answer.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "thinkvg/core/error.h"

namespace thinkvg::grounding {
namespace {

constexpr std::string_view kSpaces = " \t\r\n\f\v";

// Plain ASCII, whatever the locale; bytes of UTF-8 sequences are neither letters nor digits nor spaces.
bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_letter(char c) { return is_upper(c) || is_lower(c); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return kSpaces.find(c) != std::string_view::npos; }
bool is_word(char c) { return is_letter(c) || is_digit(c) || static_cast<unsigned char>(c) >= 0x80; }
char to_lower(char c) { return is_upper(c) ? static_cast<char>(c - 'A' + 'a') : c; }
char to_upper(char c) { return is_lower(c) ? static_cast<char>(c - 'a' + 'A') : c; }

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), to_lower);
  return out;
}

std::string_view trim(std::string_view text, std::string_view characters) {
  const std::size_t begin = text.find_first_not_of(characters);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(characters) - begin + 1);
}

std::vector<std::string_view> split_words(std::string_view normalized) {
  std::vector<std::string_view> words;
  std::size_t begin = 0;
  while (begin < normalized.size()) {
    const std::size_t end = std::min(normalized.find(' ', begin), normalized.size());
    if (end > begin) words.push_back(normalized.substr(begin, end - begin));
    begin = end + 1;
  }
  return words;
}

std::optional<bool> yes_no_word(std::string_view lower_case_word) {
  if (lower_case_word == "yes") return true;
  if (lower_case_word == "no") return false;
  return std::nullopt;
}

std::string_view first_word(std::string_view text) {
  std::size_t begin = 0;
  while (begin < text.size() && !is_word(text[begin])) ++begin;
  std::size_t end = begin;
  while (end < text.size() && is_word(text[end])) ++end;
  return text.substr(begin, end - begin);
}

// What follows the last "answer is", "answers are", "answer:", "option", "choice" of a lower-case text; npos if none.
std::size_t answer_position(std::string_view lower_case) {
  constexpr std::array<std::string_view, 12> kLeads = {
      "answers are", "answer is", "answers:",    "answer:",   "options are", "option is",
      "options",     "option",    "choices are", "choice is", "choices",     "choice"};
  std::size_t best = std::string_view::npos, best_begin = 0;
  for (std::string_view lead : kLeads) {
    const std::size_t found = lower_case.rfind(lead);
    if (found == std::string_view::npos) continue;
    if (best == std::string_view::npos || found > best_begin || (found == best_begin && found + lead.size() > best)) {
      best_begin = found;
      best = found + lead.size();
    }
  }
  return best;
}

// Reads the list of option letters from its beginning.
class LetterReader {
 public:
  explicit LetterReader(std::string_view text) : text_(text) {}

  std::optional<std::string> read() {
    skip_opening();
    char separator = 0;
    bool upper_case = false;
    for (bool first = true;; first = false) {
      if (!at_letter_item()) return std::nullopt;
      const char letter = text_[position_++];
      if (first) upper_case = is_upper(letter);
      letters_.insert(to_upper(letter));
      skip_closing();
      if (at_end()) return collected();
      const char next = text_[position_];
      if (next == ':' || next == '.') {
        separator = next;
        break;
      }
      if (!skip_list_separator()) return std::nullopt;
      if (at_end()) return collected();  // "A, C."
    }
    read_labelled_items(separator, upper_case);
    return collected();
  }

 private:
  bool at_end() const { return position_ >= text_.size(); }
  std::optional<std::string> collected() const { return std::string(letters_.begin(), letters_.end()); }

  void skip_any(std::string_view characters) {
    while (!at_end() && characters.find(text_[position_]) != std::string_view::npos) ++position_;
  }
  void skip_opening() { skip_any(" \t\r\n[('\"`"); }
  void skip_closing() { skip_any(" \t\r\n])'\"`"); }

  // A letter that is a word by itself.
  bool at_letter_item() const {
    return !at_end() && is_letter(text_[position_]) &&
           (position_ + 1 >= text_.size() || !is_word(text_[position_ + 1]));
  }

  // Commas and the like, "and", "&" between two letters; false when there is none.
  bool skip_list_separator() {
    bool any = false;
    while (!at_end()) {
      const std::string_view rest = text_.substr(position_);
      if (rest.front() == ',' || rest.front() == ';' || rest.front() == '&' || rest.front() == '/' ||
          rest.front() == '+') {
        ++position_;
        any = true;
      } else if (rest.size() > 3 && lower(rest.substr(0, 3)) == "and" && !is_word(rest[3])) {
        position_ += 3;
        any = true;
      } else {
        break;
      }
      skip_opening();
    }
    return any;
  }

  // "A: text, C: text": behind the first label only ", C:" with the same mark starts another item.
  void read_labelled_items(char mark, bool upper_case) {
    for (++position_; !at_end(); ++position_) {
      const char c = text_[position_];
      std::size_t next = position_;
      if (c == ',' || c == ';' || c == '\n') {
        next = position_ + 1;
      } else if (is_space(c) && text_.substr(position_ + 1, 4) == "and ") {
        next = position_ + 5;
      } else {
        continue;
      }
      // At most a few opening characters are skipped, to stay linear on a text full of separators.
      for (int skipped = 0; skipped < 4 && next < text_.size() &&
                            std::string_view(" \n['\"(").find(text_[next]) != std::string_view::npos;
           ++skipped) {
        ++next;
      }
      if (next + 1 < text_.size() && text_[next + 1] == mark && is_letter(text_[next]) &&
          is_upper(text_[next]) == upper_case) {
        letters_.insert(to_upper(text_[next]));
        position_ = next + 1;
      }
    }
  }

  std::string_view text_;
  std::size_t position_ = 0;
  std::set<char> letters_;
};

// A final full stop is no mark of a label: "A." and "A, C." are plain letters.
std::optional<std::string> read_letter_list(std::string_view text) {
  std::string_view body = trim(text, kSpaces);
  while (!body.empty() && (body.back() == '.' || body.back() == '!' || is_space(body.back()))) body.remove_suffix(1);
  return LetterReader(body).read();
}

// "AC", "ABD": upper case, ascending.
std::optional<std::string> read_compact_letters(std::string_view text) {
  if (text.size() < 2 || text.size() > 8) return std::nullopt;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (!is_upper(text[i]) || (i > 0 && text[i] <= text[i - 1])) return std::nullopt;
  }
  return std::string(text);
}

const std::unordered_map<std::string, std::string>& region_synonyms() {
  static const std::unordered_map<std::string, std::string> synonyms = [] {
    std::unordered_map<std::string, std::string> map = {
        {"superior vena cava", "svc"},
        {"svc superior vena cava", "svc"},
        {"heart", "cardiac silhouette"},
        {"heart silhouette", "cardiac silhouette"},
        {"cardiomediastinal silhouette", "cardiac silhouette"},
        {"cardiac area", "cardiac region"},
        {"heart region", "cardiac region"},
        {"aortic knob", "aortic arch"},
        {"aortic knuckle", "aortic arch"},
        {"superior mediastinum", "upper mediastinum"},
        {"thoracic spine", "spine"},
        {"vertebral column", "spine"},
        {"cavo atrial junction", "cavoatrial junction"},
        {"carina of trachea", "carina"},
        {"upper abdomen", "abdomen"},
        {"lung", "bilateral lung"},
        {"hilar structures", "bilateral hilar structures"},
    };
    for (const std::string side : {"right", "left", "bilateral"}) {
      map.insert({side + " lung field", side + " lung"});
      for (const std::string zone : {"upper", "mid", "lower"}) {
        const std::string canonical = side + " " + zone + " lung zone";
        map.insert({side + " " + zone + " zone", canonical});
        map.insert({side + " " + zone + " lung", canonical});
        map.insert({side + " " + zone + " lung field", canonical});
        map.insert({side + " " + zone + " lobe", canonical});
        map.insert({side + " lung " + zone + " zone", canonical});
      }
      map.insert({side + " middle lung zone", side + " mid lung zone"});
      map.insert({side + " middle zone", side + " mid lung zone"});
      map.insert({side + " middle lung", side + " mid lung zone"});
      map.insert({side + " hilum", side + " hilar structures"});
      map.insert({side + " hilar", side + " hilar structures"});
      map.insert({side + " hilar region", side + " hilar structures"});
      map.insert({side + " hilar structure", side + " hilar structures"});
      map.insert({side + " apex", side + " apical zone"});
      map.insert({side + " lung apex", side + " apical zone"});
      map.insert({side + " apical lung zone", side + " apical zone"});
      map.insert({side + " cp angle", side + " costophrenic angle"});
      map.insert({side + " costophrenic sulcus", side + " costophrenic angle"});
      map.insert({side + " diaphragm", side + " hemidiaphragm"});
      map.insert({side + " hemi diaphragm", side + " hemidiaphragm"});
    }
    // Both sides are named in several ways.
    std::unordered_map<std::string, std::string> both;
    const auto add_both = [&](const std::string& name, const std::string& canonical) {
      constexpr std::string_view kBilateral = "bilateral ";
      if (name.rfind(kBilateral, 0) != 0) return;
      const std::string part = name.substr(kBilateral.size());
      for (const std::string lead : {"both ", "left and right ", "right and left "})
        both.insert({lead + part, canonical});
    };
    for (const auto& [name, canonical] : map) add_both(name, canonical);
    for (const std::string& name : region_names()) add_both(name, name);
    map.merge(both);
    return map;
  }();
  return synonyms;
}

// "lung zones" -> "lung zone"; "hilar structures" keeps its s, as the region's name has it.
std::string without_plurals(const std::string& name) {
  static const std::set<std::string_view> kPlurals = {"lungs",     "zones",  "angles", "hemidiaphragms", "diaphragms",
                                                      "clavicles", "fields", "lobes",  "regions",        "silhouettes"};
  std::string out;
  for (std::string_view word : split_words(name)) {
    if (!out.empty()) out += ' ';
    if (kPlurals.contains(word)) word.remove_suffix(1);
    out += word == "apices" ? "apex" : word == "hila" ? "hilum" : word;
  }
  return out;
}

}  // namespace

AnswerReading parse_answer_reading(std::string_view name) {
  if (name == "strict") return AnswerReading::strict;
  if (name == "lenient") return AnswerReading::lenient;
  throw_invalid("unknown way to read answers '{}'; known are: strict, lenient", name);
}

std::string answer_reading_name(AnswerReading reading) {
  return reading == AnswerReading::strict ? "strict" : "lenient";
}

std::optional<bool> read_yes_no(std::string_view text, AnswerReading reading) {
  const std::string lower_case = lower(trim(text, " \t\r\n\f\v.!,;'\"`*[]()"));
  if (const auto answer = yes_no_word(lower_case)) return answer;
  if (reading == AnswerReading::strict) return std::nullopt;
  if (const auto answer = yes_no_word(first_word(lower_case))) return answer;
  for (std::string_view lead : {"answer is", "answer:"}) {
    const std::size_t found = lower_case.rfind(lead);
    if (found == std::string::npos) continue;
    if (const auto answer = yes_no_word(first_word(std::string_view(lower_case).substr(found + lead.size())))) {
      return answer;
    }
  }
  return std::nullopt;
}

std::optional<std::string> read_option_letters(std::string_view text, AnswerReading reading,
                                               const std::vector<std::string>& choices) {
  if (auto letters = read_letter_list(text)) return letters;
  if (reading == AnswerReading::strict) return std::nullopt;

  const std::string_view body = trim(text, " \t\r\n\f\v.!,;'\"`*[]()");
  if (auto letters = read_compact_letters(body)) return letters;
  if (auto letters = read_letter_list(body)) return letters;
  const std::size_t position = answer_position(lower(body));
  if (position != std::string_view::npos) {
    const std::string_view rest = trim(body.substr(position), " \t\r\n\f\v.!,;:'\"`*[]()");
    if (auto letters = read_compact_letters(rest)) return letters;
    if (auto letters = read_letter_list(rest)) return letters;
  }
  const std::string wanted = normalize_text(body);
  if (wanted.empty()) return std::nullopt;
  std::optional<std::string> found;
  for (const std::string& choice : choices) {
    const std::size_t colon = choice.find(':');
    if (colon == std::string::npos) continue;
    const std::string_view letter = trim(std::string_view(choice).substr(0, colon), kSpaces);
    if (letter.size() != 1 || normalize_text(std::string_view(choice).substr(colon + 1)) != wanted) continue;
    if (found) return std::nullopt;  // two options with one text
    found = std::string(1, to_upper(letter.front()));
  }
  return found;
}

bool yes_no_matches(std::string_view predicted, std::string_view reference, AnswerReading reading) {
  const std::optional<bool> wanted = read_yes_no(reference, AnswerReading::lenient);
  if (wanted) {
    if (const auto said = read_yes_no(predicted, reading)) return said == wanted;
  }
  const std::string text = normalize_text(reference);
  return !text.empty() && normalize_text(predicted) == text;
}

LettersMatch match_option_letters(std::string_view predicted, std::string_view reference, AnswerReading reading,
                                  const std::vector<std::string>& choices) {
  LettersMatch match;
  const std::optional<std::string> wanted = read_option_letters(reference, AnswerReading::lenient, choices);
  if (!wanted) {
    const std::string text = normalize_text(reference);
    match.exact = !text.empty() && normalize_text(predicted) == text;
    match.jaccard = match.exact ? 1 : 0;
    if (!match.exact) match.problem = "the answer differs from a reference that names no option letter";
    return match;
  }
  const std::optional<std::string> said = read_option_letters(predicted, reading, choices);
  if (!said) {
    match.problem = "the answer names no option letter";
    return match;
  }
  std::string common;
  std::set_intersection(said->begin(), said->end(), wanted->begin(), wanted->end(), std::back_inserter(common));
  match.jaccard =
      static_cast<double>(common.size()) / static_cast<double>(said->size() + wanted->size() - common.size());
  match.exact = *said == *wanted;
  if (!match.exact) match.problem = fmt::format("answered {}, the reference is {}", *said, *wanted);
  return match;
}

std::string normalize_text(std::string_view text) {
  std::string out, word;
  out.reserve(text.size());
  const auto end_word = [&] {
    if (!word.empty() && word != "a" && word != "an" && word != "the") {
      if (!out.empty()) out += ' ';
      out += word;
    }
    word.clear();
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool decimal_point =
        c == '.' && i > 0 && i + 1 < text.size() && is_digit(text[i - 1]) && is_digit(text[i + 1]);
    if (is_word(c) || decimal_point) {
      word += to_lower(c);
    } else if (c != '\'') {
      end_word();
    }
  }
  end_word();
  return out;
}

double token_f1(std::string_view predicted, std::string_view reference) {
  const std::string predicted_text = normalize_text(predicted), reference_text = normalize_text(reference);
  const std::vector<std::string_view> said = split_words(predicted_text), wanted = split_words(reference_text);
  if (said.empty() || wanted.empty()) return said.empty() && wanted.empty() ? 1 : 0;
  std::unordered_map<std::string_view, int> left;
  for (std::string_view word : wanted) ++left[word];
  double common = 0;
  for (std::string_view word : said) {
    const auto entry = left.find(word);
    if (entry == left.end() || entry->second == 0) continue;
    --entry->second;
    ++common;
  }
  return 2 * common / static_cast<double>(said.size() + wanted.size());
}

const std::vector<std::string>& region_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    const std::vector<std::string> paired = {
        "lung",        "upper lung zone",    "mid lung zone", "lower lung zone", "hilar structures",
        "apical zone", "costophrenic angle", "hemidiaphragm", "clavicle"};
    for (const std::string side : {"right", "left"}) {
      for (const std::string& part : paired) all.push_back(side + " " + part);
    }
    for (const char* name : {"trachea", "spine", "aortic arch", "mediastinum", "upper mediastinum", "svc",
                             "cardiac silhouette", "cavoatrial junction", "right atrium", "carina", "abdomen"}) {
      all.emplace_back(name);
    }
    for (const std::string& part : paired) all.push_back("bilateral " + part);
    all.emplace_back("cardiac region");
    return all;
  }();
  return names;
}

bool is_region_name(const std::string& name) {
  static const std::unordered_set<std::string> names(region_names().begin(), region_names().end());
  return names.contains(name);
}

std::string normalize_region_name(std::string_view name) {
  std::string plain = normalize_text(name);
  const auto known = [](const std::string& text) -> std::optional<std::string> {
    if (is_region_name(text)) return text;
    const auto synonym = region_synonyms().find(text);
    if (synonym != region_synonyms().end()) return synonym->second;
    return std::nullopt;
  };
  if (const auto found = known(plain)) return *found;
  if (const auto found = known(without_plurals(plain))) return *found;
  return plain;
}

}  // namespace thinkvg::grounding
