// Regular expressions: read into a tree, then written into a graph.
#include <utf8proc.h>

#include <algorithm>
#include <optional>

#include "text/grammar_graph.h"
#include "text/unicode.h"
#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

constexpr int kMaxPatternNesting = 250;
constexpr std::int64_t kMaxCount = 100'000;
constexpr std::int64_t kNoMaximum = -1;

struct Part {
  enum class Kind { kChar, kSet, kSequence, kChoice, kRepeat, kBegin, kEnd };
  Kind kind = Kind::kSequence;
  char32_t character = 0;         // of kChar
  CharSet set = {};               // of kSet
  std::vector<Part> parts = {};   // of kSequence, kChoice; the one of kRepeat
  std::int64_t min = 0, max = 0;  // of kRepeat
};

const CharSet& digits() {
  static const CharSet kDigits({{'0', '9'}});
  return kDigits;
}
const CharSet& word_chars() {
  static const CharSet kWord({{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}});
  return kWord;
}
const CharSet& spaces() {
  static const CharSet kSpaces({{'\t', '\r'}, {' ', ' '}});
  return kSpaces;
}

// The characters whose general category begins with the name ("L", "Lu").
std::optional<CharSet> category_chars(std::string_view name) {
  CharSet set;
  char32_t begin = 0;
  bool inside = false;
  for (char32_t c = 0; c <= 0x110000; ++c) {
    const bool fits =
        c < 0x110000 && std::string_view(utf8proc_category_string(static_cast<utf8proc_int32_t>(c))).starts_with(name);
    if (fits && !inside) begin = c;
    if (!fits && inside) set.add(begin, c - 1);
    inside = fits;
  }
  return set.empty() ? std::nullopt : std::optional(set);
}

class RegexReader {
 public:
  RegexReader(std::string_view pattern, CharForm form) : pattern_(pattern), form_(form) {
    if (!is_valid_utf8(pattern)) throw_invalid("the pattern is no valid UTF-8");
    for (std::size_t at = 0; at < pattern.size();) {
      const Character character = character_at(pattern, at);
      chars_.push_back(character.value);
      at += character.size;
    }
  }

  Part read() {
    Part part = read_choice(0);
    if (at_ < chars_.size()) fail("a ')' without its '('");
    return part;
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    throw_invalid("the pattern '{}' is not supported at character {}: {}", pattern_, at_ + 1, problem);
  }
  bool at_end() const { return at_ == chars_.size(); }
  bool sees(std::u32string_view text) const { return std::u32string_view(chars_).substr(at_).starts_with(text); }
  bool take(std::u32string_view text) {
    if (!sees(text)) return false;
    at_ += text.size();
    return true;
  }

  Part read_choice(int nesting) {
    if (nesting > kMaxPatternNesting) fail(fmt::format("groups go deeper than {}", kMaxPatternNesting));
    Part choice{.kind = Part::Kind::kChoice};
    do choice.parts.push_back(read_sequence(nesting));
    while (take(U"|"));
    return choice.parts.size() == 1 ? std::move(choice.parts.front()) : choice;
  }

  Part read_sequence(int nesting) {
    Part sequence;
    while (!at_end() && !sees(U"|") && !sees(U")")) {
      Part part = read_atom(nesting);
      read_count(part);
      sequence.parts.push_back(std::move(part));
    }
    return sequence;
  }

  void read_count(Part& part) {
    if (!read_one_count(part)) return;
    if (take(U"?")) return;  // lazy: the same texts
    if (sees(U"+")) fail("possessive quantifiers are not offered");
    const std::size_t before = at_;
    if (Part again; read_one_count(again)) {
      at_ = before;
      fail("a quantifier behind a quantifier; put a group around the first");
    }
  }

  bool read_one_count(Part& part) {
    const std::size_t before = at_;
    std::int64_t min = 0, max = kNoMaximum;
    if (take(U"*")) {
    } else if (take(U"+")) {
      min = 1;
    } else if (take(U"?")) {
      max = 1;
    } else if (take(U"{")) {
      const auto first = read_number();
      const bool comma = take(U",");
      const auto second = comma ? read_number() : first;
      if (!take(U"}") || (!first && !second)) {  // a plain brace
        at_ = before;
        return false;
      }
      min = first.value_or(0);
      max = second.value_or(kNoMaximum);
      if (max != kNoMaximum && max < min) fail(fmt::format("the count {{{},{}}} is reversed", min, max));
      if (std::max(min, max) > kMaxCount) fail(fmt::format("counts may go up to {}", kMaxCount));
    } else {
      return false;
    }
    if (part.kind == Part::Kind::kBegin || part.kind == Part::Kind::kEnd) fail("nothing to repeat");
    Part repeat{.kind = Part::Kind::kRepeat, .min = min, .max = max};
    repeat.parts.push_back(std::move(part));
    part = std::move(repeat);
    return true;
  }

  std::optional<std::int64_t> read_number() {
    std::optional<std::int64_t> number;
    for (; !at_end() && digits().contains(chars_[at_]); ++at_)
      number =
          std::min<std::int64_t>(10 * number.value_or(0) + static_cast<std::int64_t>(chars_[at_] - '0'), kMaxCount + 1);
    return number;
  }

  static Part of(CharSet set) { return {.kind = Part::Kind::kSet, .set = std::move(set)}; }
  static Part of(char32_t character) { return {.kind = Part::Kind::kChar, .character = character}; }

  Part read_atom(int nesting) {
    if (take(U"(")) return read_group(nesting);
    if (take(U"[")) return of(read_class());
    if (take(U".")) {
      if (form_ == CharForm::kPlain) return of(CharSet::one('\n').complement());
      return of(CharSet({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}).complement());
    }
    if (take(U"^")) return {.kind = Part::Kind::kBegin};
    if (take(U"$")) return {.kind = Part::Kind::kEnd};
    if (sees(U"*") || sees(U"+") || sees(U"?")) fail("nothing to repeat");
    if (take(U"\\")) return read_escape();
    return of(chars_[at_++]);
  }

  Part read_group(int nesting) {
    if (take(U"?")) {
      if (sees(U"=") || sees(U"!") || sees(U"<=") || sees(U"<!")) fail("look-around is not offered");
      if (sees(U">")) fail("atomic groups are not offered");
      if (take(U"P<") || take(U"<")) {
        while (!at_end() && (word_chars().contains(chars_[at_]) || chars_[at_] > 0x7F)) ++at_;
        if (!take(U">")) fail("a group's name should end with '>'");
      } else if (!take(U":")) {
        fail("only plain groups, (?:..) and (?<name>..) are offered; no flags, conditions or references");
      }
    } else if (sees(U"*")) {
      fail("verbs are not offered");
    }
    Part inside = read_choice(nesting + 1);
    if (!take(U")")) fail("a '(' without its ')'");
    // Of its own even where it is empty or a single character, so that a literal text does not reach into it.
    Part group;
    group.parts.push_back(std::move(inside));
    return group;
  }

  char32_t read_hex(std::size_t min, std::size_t max) {
    char32_t value = 0;
    std::size_t count = 0;
    for (; count < max && !at_end(); ++at_, ++count) {
      const char32_t c = chars_[at_];
      const int digit = c >= '0' && c <= '9'   ? static_cast<int>(c - '0')
                        : c >= 'a' && c <= 'f' ? static_cast<int>(c - 'a') + 10
                        : c >= 'A' && c <= 'F' ? static_cast<int>(c - 'A') + 10
                                               : -1;
      if (digit < 0) break;
      value = value * 16 + static_cast<char32_t>(digit);
    }
    if (count < min) fail("hexadecimal digits are missing");
    return value;
  }

  // Behind "\x", "\u" or "\U".
  char32_t read_code(char32_t letter) {
    char32_t value = 0;
    if (letter != 'U' && take(U"{")) {
      value = read_hex(1, 8);
      if (!take(U"}")) fail("a '}' is missing");
    } else {
      const std::size_t count = letter == 'x' ? 2 : letter == 'u' ? 4 : 8;
      value = read_hex(count, count);
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) fail("this number is no character's");
    return value;
  }

  // Escapes that mean the same in and outside of classes.
  std::optional<Part> read_shared_escape(char32_t letter) {
    switch (letter) {
      case 'd':
        return of(digits());
      case 'D':
        return of(digits().complement());
      case 'w':
        return of(word_chars());
      case 'W':
        return of(word_chars().complement());
      case 's':
        return of(spaces());
      case 'S':
        return of(spaces().complement());
      case 'n':
        return of(U'\n');
      case 't':
        return of(U'\t');
      case 'r':
        return of(U'\r');
      case 'f':
        return of(U'\f');
      case 'v':
        return of(U'\v');
      case 'a':
        return of(U'\a');
      case 'e':
        return of(char32_t{0x1B});
      case '0':
        if (!at_end() && digits().contains(chars_[at_])) fail("octal numbers are not offered; write \\x..");
        return of(char32_t{0});
      case 'x':
      case 'u':
      case 'U':
        return of(read_code(letter));
      case 'p':
      case 'P': {
        std::string name;
        if (take(U"{")) {
          while (!at_end() && chars_[at_] != '}') name += to_utf8(chars_[at_++]);
          if (!take(U"}")) fail("a '}' is missing");
        } else if (!at_end()) {
          name = to_utf8(chars_[at_++]);
        }
        const auto set = name.empty() || name.size() > 2 ? std::nullopt : category_chars(name);
        if (!set) fail(fmt::format("\\p knows the general categories (L, Lu, N, P, ..), not '{}'", name));
        return of(letter == 'p' ? *set : set->complement());
      }
      default:
        if (letter > 0x7F || !word_chars().contains(letter)) return of(letter);
        return std::nullopt;
    }
  }

  Part read_escape() {
    if (at_end()) fail("a backslash at the end");
    const char32_t letter = chars_[at_++];
    if (letter == 'A') return {.kind = Part::Kind::kBegin};
    if (letter == 'Z' || letter == 'z') return {.kind = Part::Kind::kEnd};
    if (letter == 'b' || letter == 'B') fail("word boundaries are not offered");
    if ((letter >= '1' && letter <= '9') || letter == 'k' || letter == 'g') fail("back-references are not offered");
    if (auto part = read_shared_escape(letter)) return *std::move(part);
    fail(fmt::format("the escape \\{} is not known", to_utf8(letter)));
  }

  // One character or set of a class.
  Part read_class_item() {
    if (take(U"[:")) fail("[:..:] is not offered; use \\d, \\w, \\s or \\p{..}");
    if (!take(U"\\")) return of(chars_[at_++]);
    if (at_end()) fail("a '[' without its ']'");
    const char32_t letter = chars_[at_++];
    if (letter == 'b') return of(U'\b');
    if (auto part = read_shared_escape(letter)) return *std::move(part);
    fail(fmt::format("the escape \\{} is not known in a class", to_utf8(letter)));
  }

  CharSet read_class() {
    const bool negated = take(U"^");
    CharSet set;
    for (bool first = true; first || !sees(U"]"); first = false) {
      if (at_end()) fail("a '[' without its ']'");
      const Part item = read_class_item();
      const bool range = sees(U"-") && at_ + 1 < chars_.size() && chars_[at_ + 1] != ']';
      if (!range) {
        if (item.kind == Part::Kind::kSet)
          set.add(item.set);
        else
          set.add(item.character, item.character);
        continue;
      }
      ++at_;
      const Part last = read_class_item();
      if (item.kind == Part::Kind::kSet || last.kind == Part::Kind::kSet) fail("a range needs two characters");
      if (last.character < item.character) fail("the range is reversed");
      set.add(item.character, last.character);
    }
    take(U"]");
    return negated ? set.complement() : set;
  }

  std::string pattern_;
  CharForm form_;
  std::u32string chars_;
  std::size_t at_ = 0;
};

Part any_text() {
  Part repeat{.kind = Part::Kind::kRepeat, .min = 0, .max = kNoMaximum};
  repeat.parts.push_back({.kind = Part::Kind::kSet, .set = CharSet::all()});
  return repeat;
}

// Takes the anchors off one side; where `search`, puts any text there instead of a missing one.
Part settle_side(Part part, Part::Kind anchor, bool search) {
  const bool begin = anchor == Part::Kind::kBegin;
  if (part.kind == anchor) return {};
  if (part.kind == Part::Kind::kChoice) {
    for (Part& branch : part.parts) branch = settle_side(std::move(branch), anchor, search);
    return part;
  }
  if (part.kind == Part::Kind::kSequence && !part.parts.empty()) {
    Part& outer = begin ? part.parts.front() : part.parts.back();
    outer = settle_side(std::move(outer), anchor, search);
    return part;
  }
  if (!search) return part;
  Part wider;
  wider.parts.push_back(std::move(part));
  wider.parts.insert(begin ? wider.parts.begin() : wider.parts.end(), any_text());
  return wider;
}

class RegexWriter {
 public:
  RegexWriter(Graph& graph, CharForm form) : graph_(graph), form_(form) {}

  Graph::Node write(const Part& part, Graph::Node from) {
    switch (part.kind) {
      case Part::Kind::kChar:
        return form_ == CharForm::kPlain ? graph_.literal(from, to_utf8(part.character))
                                         : write_set(CharSet::one(part.character), from);
      case Part::Kind::kSet:
        return write_set(part.set, from);
      case Part::Kind::kSequence:
        return write_sequence(part, from);
      case Part::Kind::kChoice: {
        const Graph::Node to = graph_.node();
        for (const Part& branch : part.parts) graph_.link(write(branch, from), to);
        return to;
      }
      case Part::Kind::kRepeat:
        return write_repeat(part, from);
      case Part::Kind::kBegin:
      case Part::Kind::kEnd:
        throw_invalid("a pattern's ^ and $ are only understood at its ends: the whole text is matched anyway");
    }
    return from;
  }

 private:
  Graph::Node write_sequence(const Part& sequence, Graph::Node from) {
    std::string literal;
    for (const Part& part : sequence.parts) {
      if (part.kind == Part::Kind::kChar && form_ == CharForm::kPlain) {
        literal += to_utf8(part.character);
        continue;
      }
      from = graph_.literal(from, literal);
      literal.clear();
      from = write(part, from);
    }
    return graph_.literal(from, literal);
  }

  Graph::Node write_repeat(const Part& repeat, Graph::Node from) {
    const Part& part = repeat.parts.front();
    // A node for each turn, so that counts of empty parts meet the limit, too.
    for (std::int64_t i = 0; i < repeat.min; ++i) {
      const Graph::Node next = graph_.node();
      graph_.link(write(part, from), next);
      from = next;
    }
    const Graph::Node to = graph_.node();
    graph_.link(from, to);
    if (repeat.max == kNoMaximum) {
      graph_.link(write(part, to), to);
      return to;
    }
    for (std::int64_t i = repeat.min; i < repeat.max; ++i) {
      const Graph::Node next = graph_.node();
      graph_.link(write(part, from), next);
      graph_.link(next, to);
      from = next;
    }
    return to;
  }

  Graph::Node write_set(const CharSet& set, Graph::Node from) {
    if (form_ == CharForm::kPlain) return graph_.chars(from, set);
    static const CharSet kEscaped({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}});
    const Graph::Node to = graph_.chars(from, set.without(kEscaped));
    const CharSet escaped = set.both(kEscaped);
    for (const CharSet::Range& range : escaped.ranges())
      for (char32_t c = range.first; c <= range.last; ++c) {
        const std::string quoted = Json(std::string(1, static_cast<char>(c))).dump();
        graph_.link(graph_.literal(from, std::string_view(quoted).substr(1, quoted.size() - 2)), to);
      }
    return to;
  }

  Graph& graph_;
  CharForm form_;
};

}  // namespace

Graph::Node add_regex(Graph& graph, Graph::Node from, std::string_view pattern, CharForm form) {
  Part part = RegexReader(pattern, form).read();
  const bool search = form == CharForm::kJson;
  part = settle_side(std::move(part), Part::Kind::kBegin, search);
  part = settle_side(std::move(part), Part::Kind::kEnd, search);
  return RegexWriter(graph, form).write(part, from);
}

}  // namespace thinkvg::text
