#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thinkvg::grounding {

// Reading and comparing answers. All functions take any text, never throw on it, and are linear in its length.

// strict: the text is the answer and nothing else (case, quotes, brackets and a full stop aside).
// lenient: also an answer with words around it: "no, the heart is normal", "The answer is B.", a choice's own text.
enum class AnswerReading { strict, lenient };
AnswerReading parse_answer_reading(std::string_view name);  // "strict", "lenient"; else std::invalid_argument
std::string answer_reading_name(AnswerReading reading);

// true for yes, false for no, nothing if the text says neither. Whole words only: "normal" and "not" are no "no".
// strict: the one word. lenient: the first word, or the word after "answer is" or "answer:".
std::optional<bool> read_yes_no(std::string_view text, AnswerReading reading);

// The chosen option letters, upper case, sorted, each once; nothing if the text is no choice.
// strict: "A", "(a)", "A: its text", "A. its text", "A, C", "A and C", "['A', 'C']", "A: text, C: text".
// lenient: also "AC", "**B**", "The answer is B", "Options A and C", and a text equal to that of one of `choices`
// ("A: left lung", "B: right lung").
// "A small nodule" is never option A.
std::optional<std::string> read_option_letters(std::string_view text, AnswerReading reading,
                                               const std::vector<std::string>& choices = {});

// Whether a yes/no answer agrees with the reference. A reference that is no plain yes or no is read leniently, and
// failing that compared as normalised text.
bool yes_no_matches(std::string_view predicted, std::string_view reference, AnswerReading reading);

// How well the chosen letters agree with the reference's. References are read as above.
struct LettersMatch {
  bool exact = false;   // the same set
  double jaccard = 0;   // size of the intersection over size of the union, in [0, 1]
  std::string problem;  // why not exact, in words; empty when exact
};
LettersMatch match_option_letters(std::string_view predicted, std::string_view reference, AnswerReading reading,
                                  const std::vector<std::string>& choices = {});

// Lower case (ASCII), punctuation to spaces (a point between digits stays, an apostrophe vanishes), without the
// articles a, an, the, one space between words.
std::string normalize_text(std::string_view text);

// Harmonic mean of precision and recall of the words of the normalised texts, counted with multiplicity (as SQuAD
// does). Both without words: 1; one of them: 0.
double token_f1(std::string_view predicted, std::string_view reference);

// The 29 regions of Chest ImaGenome and the joint regions ("bilateral lung", "cardiac region", ..) that GEMeX adds.
const std::vector<std::string>& region_names();
// Whether the name, exactly so written, is one of them.
bool is_region_name(const std::string& name);

// The name in region_names() that the text stands for: case, articles, plurals, "_" and "-", and usual synonyms
// ("heart", "superior vena cava", "right CP angle") aside.
// Text that stands for none of them comes back normalised.
std::string normalize_region_name(std::string_view name);

}  // namespace thinkvg::grounding
