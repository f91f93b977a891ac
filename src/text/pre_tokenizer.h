#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/text/tokenizer.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace thinkvg::text {

// What a match needs to write to; one a thread.
class MatchScratch {
 public:
  MatchScratch();
  ~MatchScratch();
  MatchScratch(const MatchScratch&) = delete;
  MatchScratch& operator=(const MatchScratch&) = delete;

 private:
  friend class Pattern;
  pcre2_real_match_data_8* data_;
  pcre2_real_match_context_8* context_;
  pcre2_real_jit_stack_8* stack_;
};

struct Match {
  std::size_t begin = 0, end = 0;
};

// A regular expression as tokenizer files have it (Oniguruma's syntax, as far as PCRE2 means the same). Thread-safe.
class Pattern {
 public:
  // Throws std::runtime_error naming the pattern and what is wrong or not supported.
  explicit Pattern(const std::string& pattern);
  // A text to be found as it is.
  static Pattern literal(const std::string& text);
  // The first match at or behind `from`; false where there is none. `subject`: see with_stand_ins().
  bool find(std::string_view subject, std::size_t from, MatchScratch& scratch, Match& match) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::string source_;
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

// What happens to the text between two pieces, as Hugging Face names it.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
enum class PrependScheme { kAlways, kFirst, kNever };

struct PreTokenizerStep {
  enum class Kind {
    kSplit,        // by pattern
    kDigits,       // numbers as pieces of their own, digit by digit where `behavior` is kIsolated
    kPrefixSpace,  // a space in front of each piece that has none
    kMetaspace,    // spaces become "▁", one is put in front; split before each where `split`
  };
  Kind kind = Kind::kSplit;
  std::shared_ptr<const Pattern> pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;
  std::string replacement = "▁";
  PrependScheme prepend = PrependScheme::kAlways;
  bool split = false;
};

// The pieces of a text and the memory that those hold which are not part of it. One a thread, for many texts.
struct Pieces {
  MatchScratch match;
  std::vector<std::string_view> pieces, next;
  std::vector<std::string> buffers;
  std::string stand_ins;
};

// Applies the steps in order to one text between added tokens; the result is in `pieces.pieces` until the next call.
void pre_tokenize(const std::vector<PreTokenizerStep>& steps, std::string_view text, TextPlace place, Pieces& pieces);

}  // namespace thinkvg::text
