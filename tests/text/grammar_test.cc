#include "thinkvg/text/grammar.h"

#include <gmock/gmock.h>
#include <spdlog/fmt/fmt.h>

#include <deque>
#include <set>
#include <thread>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/random.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::text {
namespace {

using State = TokenConstraint::State;
constexpr State kDead = TokenConstraint::kDead;

// A vocabulary with what grammars need of it.
struct Vocabulary {
  std::string name;
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<std::int64_t> end_ids;
  std::int64_t size = 0;               // of the logits
  std::vector<std::int64_t> byte_ids;  // by byte, inside of a text
  std::unique_ptr<GrammarCompiler> compiler;
};

Vocabulary make_vocabulary(const std::string& name, const std::filesystem::path& folder, const std::string& end) {
  Vocabulary made;
  made.name = name;
  made.tokenizer = load_tokenizer(folder);
  made.end_ids = {made.tokenizer->token_id(end)};
  made.size = made.tokenizer->vocab_size() + 70;  // a padded table
  made.byte_ids.assign(256, -1);
  for (std::int64_t id = made.tokenizer->vocab_size() - 1; id >= 0; --id) {
    const std::string bytes = made.tokenizer->bytes(id, TextPlace::kInside);
    if (bytes.size() == 1 && !made.tokenizer->is_added(id)) made.byte_ids[static_cast<std::uint8_t>(bytes[0])] = id;
  }
  made.compiler = std::make_unique<GrammarCompiler>(*made.tokenizer, made.end_ids, made.size);
  return made;
}

// With response tags as tokens of their own (a trained one), with some of them (Qwen's kind), and without (LLaMA's,
// which takes the first space off, and Gemma's, which has tokens of several line breaks).
const std::vector<Vocabulary>& vocabularies() {
  static const std::vector<Vocabulary> kAll = [] {
    const std::filesystem::path data = std::filesystem::path(THINKVG_TEST_DATA) / "tokenizers";
    const test::TemporaryFolder folder;
    std::vector<std::string> texts;
    for (int i = 0; i < 200; ++i)
      texts.push_back(
          fmt::format("<think>The left lower lung zone (region [{}, 51, 190, 281]) shows {{\"a\": [true, {}]}} "
                      "opacity.</think><response><answer>yes, no</answer></response> éà 肺炎",
                      i, i));
    train_tokenizer(texts, {520}, folder.path());
    std::vector<Vocabulary> all;
    all.push_back(make_vocabulary("thinkvg", folder.path(), "<|im_end|>"));
    all.push_back(make_vocabulary("qwen", data / "qwen", "<|im_end|>"));
    all.push_back(make_vocabulary("llama", data / "llama", "</s>"));
    all.push_back(make_vocabulary("gemma", data / "gemma", "<eos>"));
    return all;
  }();
  return kAll;
}

bool is_allowed(const TokenConstraint& constraint, State state, std::int64_t id) {
  return (constraint.allowed(state)[static_cast<std::size_t>(id / 64)] >> (id % 64) & 1) != 0;
}

std::vector<std::int64_t> allowed_ids(const TokenConstraint& constraint, State state) {
  std::vector<std::int64_t> ids;
  const auto words = constraint.allowed(state);
  for (std::size_t i = 0; i < words.size(); ++i)
    for (std::uint64_t word = words[i]; word != 0; word &= word - 1)
      ids.push_back(static_cast<std::int64_t>(i * 64) + __builtin_ctzll(word));
  return ids;
}

// The mask says the same as next() for each id, and there is something to choose.
void check_mask(const TokenConstraint& constraint, State state, const Vocabulary& vocabulary) {
  const auto words = constraint.allowed(state);
  ASSERT_EQ(static_cast<std::int64_t>(words.size()), (vocabulary.size + 63) / 64);
  bool any = false;
  for (std::int64_t id = 0; id < static_cast<std::int64_t>(words.size()) * 64; ++id) {
    const bool bit = is_allowed(constraint, state, id);
    any = any || bit;
    ASSERT_EQ(bit, constraint.next(state, id) != kDead)
        << "state " << state << ", id " << id << " '" << vocabulary.tokenizer->piece(id) << "'";
  }
  EXPECT_TRUE(any) << "state " << state;
  for (const std::int64_t id : vocabulary.end_ids)
    EXPECT_EQ(is_allowed(constraint, state, id), constraint.accepts(state));
}

// From a state to the end by single bytes and added tokens: what closes things first, which ends JSON and responses
// soon; where that does not end, the shortest way.
std::optional<std::vector<std::int64_t>> way_out(const TokenConstraint& constraint, State from,
                                                 const Vocabulary& vocabulary) {
  std::vector<std::int64_t> closing, others;
  for (std::int64_t id = 0; id < vocabulary.tokenizer->vocab_size(); ++id)
    if (vocabulary.tokenizer->is_added(id))
      (vocabulary.tokenizer->piece(id).starts_with("</") ? closing : others).push_back(id);
  const auto byte_order = [&](std::string first) {
    for (int byte = 0; byte < 256; ++byte)
      if (first.find(static_cast<char>(byte)) == std::string::npos) first += static_cast<char>(byte);
    std::vector<std::int64_t> order = closing;
    for (const char byte : first)
      if (const std::int64_t id = vocabulary.byte_ids[static_cast<std::uint8_t>(byte)]; id >= 0) order.push_back(id);
    order.insert(order.end(), others.begin(), others.end());
    return order;
  };
  std::vector<std::int64_t> tried, ids;
  for (const char* first : {"<,/]", "\"}],:"}) {  // for responses, for JSON
    tried = byte_order(first);
    ids.clear();
    for (State state = from; ids.size() < 400;) {
      if (constraint.accepts(state)) return ids;
      const auto found = std::find_if(tried.begin(), tried.end(),
                                      [&](std::int64_t id) { return constraint.next(state, id) != kDead; });
      if (found == tried.end()) return std::nullopt;
      ids.push_back(*found);
      state = constraint.next(state, *found);
    }
  }
  std::map<State, std::pair<State, std::int64_t>> came_by = {{from, {from, -1}}};
  std::deque<State> open = {from};
  while (!open.empty() && came_by.size() < 20000) {
    const State state = open.front();
    open.pop_front();
    if (constraint.accepts(state)) {
      ids.clear();
      for (State at = state; at != from; at = came_by.at(at).first) ids.insert(ids.begin(), came_by.at(at).second);
      return ids;
    }
    for (const std::int64_t id : tried) {
      const State to = constraint.next(state, id);
      if (to != kDead && came_by.emplace(to, std::make_pair(state, id)).second) open.push_back(to);
    }
  }
  return std::nullopt;
}

// The text of a walk through the masks: `steps` at random, then a way out. Checks masks on the way.
std::string walk(const TokenConstraint& constraint, const Vocabulary& vocabulary, RandomStream& random, int steps,
                 bool check = false) {
  State state = constraint.start();
  std::vector<std::int64_t> ids;
  bool ended = false;
  for (int i = 0; i < steps && !ended; ++i) {
    if (check) check_mask(constraint, state, vocabulary);
    if (testing::Test::HasFatalFailure()) return {};
    const auto choice = allowed_ids(constraint, state);
    if (choice.empty()) {
      ADD_FAILURE() << "nothing is allowed behind " << vocabulary.tokenizer->decode(ids, true);
      return {};
    }
    const std::int64_t id = choice[random.below(choice.size())];
    state = constraint.next(state, id);
    ended = id == vocabulary.end_ids.front();
    if (!ended) ids.push_back(id);
  }
  if (!ended) {
    const auto rest = way_out(constraint, state, vocabulary);
    EXPECT_TRUE(rest) << "no end from " << vocabulary.tokenizer->decode(ids, true);
    if (rest) ids.insert(ids.end(), rest->begin(), rest->end());
  }
  return vocabulary.tokenizer->decode(ids, true);
}

// Whether ids make a complete text.
bool accepts_ids(const TokenConstraint& constraint, const std::vector<std::int64_t>& ids) {
  State state = constraint.start();
  for (const std::int64_t id : ids) {
    const bool allowed = is_allowed(constraint, state, id);
    const State to = constraint.next(state, id);
    EXPECT_EQ(allowed, to != kDead);
    if (to == kDead) return false;
    state = to;
  }
  return constraint.accepts(state);
}

bool accepts_bytes(const TokenConstraint& constraint, const Vocabulary& vocabulary, std::string_view text) {
  std::vector<std::int64_t> ids;
  for (const char byte : text) {
    const std::int64_t id = vocabulary.byte_ids[static_cast<std::uint8_t>(byte)];
    if (id < 0) return false;
    if (ids.empty() && byte == ' ' && vocabulary.tokenizer->bytes(id, TextPlace::kStart).empty()) ids.push_back(id);
    ids.push_back(id);
  }
  return accepts_ids(constraint, ids);
}

// The same question to PCRE2.
class Pcre {
 public:
  explicit Pcre(const std::string& pattern) {
    const std::string whole = "(?:" + pattern + ")\\z";
    int error = 0;
    PCRE2_SIZE where = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(whole.data()), whole.size(), PCRE2_UTF | PCRE2_ANCHORED, &error,
                          &where, nullptr);
    data_ = code_ == nullptr ? nullptr : pcre2_match_data_create_from_pattern(code_, nullptr);
  }
  ~Pcre() {
    pcre2_match_data_free(data_);
    pcre2_code_free(code_);
  }
  Pcre(const Pcre&) = delete;
  Pcre& operator=(const Pcre&) = delete;
  bool compiled() const { return code_ != nullptr; }
  bool matches(std::string_view text) const { return run(text, 0) >= 0; }
  bool may_begin(std::string_view text) const {
    const int result = run(text, PCRE2_PARTIAL_SOFT);
    return result >= 0 || result == PCRE2_ERROR_PARTIAL;
  }

 private:
  int run(std::string_view text, std::uint32_t options) const {
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, options, data_, nullptr);
  }
  pcre2_code* code_ = nullptr;
  pcre2_match_data* data_ = nullptr;
};

const std::vector<std::string>& patterns() {
  static const std::vector<std::string> kPatterns = {
      "abc",
      "[a-c]{2,4}x?",
      "(ab|a)(bc|c)",
      R"(\d{3}-\d{4})",
      "(a*)*b",
      "(a|aa)+",
      "(a|b)*a(a|b){4}",
      R"([^x-z\n]{1,6})",
      ".{0,5}é[à-ü]?",
      R"(\w+\s\w+)",
      "(?:foo|bar|baz)*",
      "肺[炎癌]?|心臓",
      R"(\p{Lu}\p{Ll}+)",
      "[]a]+",
      R"([a\]-]+)",
      "a{b}",
      "|a",
      "()",
      R"([\d\-_]+)",
      R"([^\W\d]+)",
      R"([\x41-\x{43}]\.\(\))",
      "(?<name>x+?)y*?z",
      "^(left|right) (upper|mid|lower) lung zone$",
      "((a{1,3}){1,3}b){2}",
      R"([\u4e00-\u9fff]{1,3})",
      "[🫀-🫁]+ ok",
  };
  return kPatterns;
}

std::string pcre_form(std::string pattern) {
  for (std::size_t at; (at = pattern.find("\\u")) != std::string::npos;)
    pattern = pattern.substr(0, at) + "\\x{" + pattern.substr(at + 2, 4) + "}" + pattern.substr(at + 6);
  return pattern;
}

std::string changed(std::string text, RandomStream& random) {
  static const std::vector<std::string> kParts = {"a", "b", "c",  "x", "y", "z", "A",  "B",    "0", "9",
                                                  "-", "_", "\n", " ", "é", "à", "肺", "🫁", "]", "{"};
  for (std::uint64_t i = random.below(3) + 1; i > 0; --i) {
    std::size_t at = random.below(text.size() + 1);
    while (at < text.size() && (text[at] & 0xC0) == 0x80) ++at;
    std::size_t end = at;
    if (random.below(2) == 0 && at < text.size()) do
        ++end;
      while (end < text.size() && (text[end] & 0xC0) == 0x80);
    text.replace(at, end - at, random.below(3) == 0 ? "" : kParts[random.below(kParts.size())]);
  }
  return text;
}

void expect_refused(const std::function<void()>& compile, const std::string& message) {
  try {
    compile();
    ADD_FAILURE() << "compiled; expected: " << message;
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(message));
  }
}

TEST(RegexGrammar, TakesTheTextsThatPcreTakes) {
  for (const Vocabulary& vocabulary : vocabularies()) {
    for (std::size_t i = 0; i < patterns().size(); ++i) {
      const std::string& pattern = patterns()[i];
      SCOPED_TRACE(vocabulary.name + ": " + pattern);
      const Pcre pcre(pcre_form(pattern));
      ASSERT_TRUE(pcre.compiled());
      const auto constraint = vocabulary.compiler->regex(pattern);
      RandomStream random({7, i});
      int accepted = 0;
      for (int n = 0; n < 60; ++n) {
        const std::string text = walk(*constraint, vocabulary, random, static_cast<int>(random.below(12)));
        ASSERT_TRUE(pcre.matches(text)) << testing::PrintToString(text);
        ASSERT_TRUE(accepts_bytes(*constraint, vocabulary, text)) << testing::PrintToString(text);
        const auto ids = vocabulary.tokenizer->encode(text);  // perhaps of another form of the characters
        ASSERT_EQ(accepts_ids(*constraint, ids), pcre.matches(vocabulary.tokenizer->decode(ids, true)))
            << testing::PrintToString(text);
        const std::string other = changed(text, random);
        ASSERT_EQ(accepts_bytes(*constraint, vocabulary, other), pcre.matches(other)) << testing::PrintToString(other);
        accepted += pcre.matches(other) ? 1 : 0;
      }
      EXPECT_LE(accepted, 60);
    }
  }
}

TEST(RegexGrammar, MasksAreWhatEachTokenSays) {
  for (const Vocabulary& vocabulary : vocabularies())
    for (std::size_t i = 0; i < patterns().size(); ++i) {
      SCOPED_TRACE(vocabulary.name + ": " + patterns()[i]);
      const auto constraint = vocabulary.compiler->regex(patterns()[i]);
      RandomStream random({8, i});
      for (int n = 0; n < 3; ++n) walk(*constraint, vocabulary, random, 5, true);
      if (HasFatalFailure()) return;
    }
}

// Against PCRE2's partial matches, which know nothing of tokens or of this automaton.
TEST(RegexGrammar, AllowsATokenWhereTheTextMayGoOn) {
  for (const Vocabulary& vocabulary : vocabularies()) {
    for (const std::string pattern : {"(ab|a)(bc|c)", R"(\d{3}-\d{4})", "(?:foo|bar|baz)*", R"(\w+\s\w+)",
                                      "(left|right) (upper|mid|lower) lung zone", R"([^\W\d]+)"}) {
      SCOPED_TRACE(vocabulary.name + ": " + pattern);
      const Pcre pcre(pattern);
      const auto constraint = vocabulary.compiler->regex(pattern);
      RandomStream random({9});
      for (int n = 0; n < 6; ++n) {
        State state = constraint->start();
        std::string text;
        for (int i = 0; i < 6; ++i) {
          for (std::int64_t id = 0; id < vocabulary.tokenizer->vocab_size(); ++id) {
            if (vocabulary.tokenizer->is_added(id)) continue;
            const std::string bytes = vocabulary.tokenizer->bytes(id, i == 0 ? TextPlace::kStart : TextPlace::kInside);
            if (bytes.empty() || static_cast<signed char>(bytes[0]) < 0) continue;
            ASSERT_EQ(is_allowed(*constraint, state, id), pcre.may_begin(text + bytes))
                << testing::PrintToString(text) << " then " << testing::PrintToString(bytes);
          }
          const auto choice = allowed_ids(*constraint, state);
          const std::int64_t id = choice[random.below(choice.size())];
          if (id == vocabulary.end_ids.front()) break;
          text += vocabulary.tokenizer->bytes(id, i == 0 ? TextPlace::kStart : TextPlace::kInside);
          state = constraint->next(state, id);
        }
      }
    }
  }
}

TEST(RegexGrammar, TokensMayEndWithinACharacter) {
  const Vocabulary& vocabulary = vocabularies().front();
  const auto constraint = vocabulary.compiler->regex("[肺心]");
  State state = constraint->start();
  for (const char byte : std::string("\xE8\x82")) {
    state = constraint->next(state, vocabulary.byte_ids[static_cast<std::uint8_t>(byte)]);
    ASSERT_NE(state, kDead);
    EXPECT_FALSE(constraint->accepts(state));
  }
  EXPECT_EQ(allowed_ids(*constraint, state), std::vector<std::int64_t>{vocabulary.byte_ids[0xBA]});
}

TEST(RegexGrammar, AddedTokensStandOnlyWhereTheyAreNamed) {
  const Vocabulary& vocabulary = vocabularies().front();
  const std::int64_t think = vocabulary.tokenizer->token_id("<think>");
  const auto free = vocabulary.compiler->regex("(.|\n)*");
  for (const std::int64_t id : allowed_ids(*free, free->start()))
    EXPECT_TRUE(id == vocabulary.end_ids[0] || !vocabulary.tokenizer->is_added(id)) << vocabulary.tokenizer->piece(id);
  const auto named = vocabulary.compiler->regex("<think>[a-z]+");
  EXPECT_EQ(allowed_ids(*named, named->start()), std::vector<std::int64_t>{think});
  const auto image = vocabulary.compiler->regex("a<\\|image_pad\\|>");
  const State behind = image->next(image->start(), vocabulary.byte_ids['a']);
  EXPECT_EQ(allowed_ids(*image, behind), std::vector<std::int64_t>{vocabulary.tokenizer->token_id("<|image_pad|>")});
  const Vocabulary& pieces = vocabularies()[2];
  EXPECT_FALSE(pieces.tokenizer->find("<think>"));
  const auto spelled = pieces.compiler->regex("<think>");
  EXPECT_TRUE(accepts_ids(*spelled, pieces.tokenizer->encode("<think>")));
}

TEST(RegexGrammar, TheFirstSpaceOfATextIsTakenOff) {
  const Vocabulary& vocabulary = vocabularies()[2];
  ASSERT_EQ(vocabulary.name, "llama");
  const auto constraint = vocabulary.compiler->regex("the");
  const auto ids = vocabulary.tokenizer->encode("the");  // "▁the" or in pieces
  EXPECT_EQ(vocabulary.tokenizer->bytes(ids[0], TextPlace::kInside)[0], ' ');
  EXPECT_TRUE(accepts_ids(*constraint, ids));
  EXPECT_TRUE(accepts_bytes(*constraint, vocabulary, "the"));
  std::vector<std::int64_t> twice = ids;
  twice.insert(twice.begin(), vocabulary.byte_ids[' ']);
  EXPECT_FALSE(accepts_ids(*constraint, twice)) << vocabulary.tokenizer->decode(twice);
  const auto spaced = vocabulary.compiler->regex(" the");
  EXPECT_TRUE(accepts_ids(*spaced, twice)) << vocabulary.tokenizer->decode(twice);
  EXPECT_FALSE(accepts_ids(*spaced, ids));
}

TEST(RegexGrammar, AddedTokensOfWhiteSpaceAreText) {
  const Vocabulary& vocabulary = vocabularies()[3];
  const auto constraint = vocabulary.compiler->regex("a[\\n ]*");
  const State state = constraint->next(constraint->start(), vocabulary.byte_ids['a']);
  EXPECT_TRUE(is_allowed(*constraint, state, vocabulary.tokenizer->token_id("\n\n")));
  EXPECT_TRUE(is_allowed(*constraint, state, vocabulary.tokenizer->token_id("▁▁")));
  EXPECT_FALSE(is_allowed(*constraint, state, vocabulary.tokenizer->token_id("<lung>")));
}

// Where characters have pieces, but not all bytes do, no text gets stuck within a character.
TEST(RegexGrammar, VocabulariesMayLackBytes) {
  Vocabulary vocabulary =
      make_vocabulary("metaspace", std::filesystem::path(THINKVG_TEST_DATA) / "tokenizers" / "metaspace", "<unk>");
  ASSERT_LT(vocabulary.byte_ids[0xE8], 0);
  RandomStream random({5});
  for (const std::string pattern : {"[^\n]{1,5}", "(a|\\x{1F600})+b", "[a-z ]{3,9}"}) {
    const Pcre pcre(pattern);
    const auto constraint = vocabulary.compiler->regex(pattern);
    for (int n = 0; n < 20; ++n) {
      const std::string text = walk(*constraint, vocabulary, random, 6, n < 3);
      ASSERT_TRUE(pcre.matches(text)) << testing::PrintToString(text);
    }
  }
  expect_refused([&] { vocabulary.compiler->regex("\\x{1F600}"); }, "lacks tokens for single bytes");
}

TEST(RegexGrammar, AfterTheEndComesOnlyTheEnd) {
  const Vocabulary& vocabulary = vocabularies().front();
  const auto constraint = vocabulary.compiler->regex("a?");
  const State ended = constraint->next(constraint->start(), vocabulary.end_ids[0]);
  ASSERT_NE(ended, kDead);
  EXPECT_TRUE(constraint->accepts(ended));
  EXPECT_EQ(allowed_ids(*constraint, ended), vocabulary.end_ids);
  EXPECT_EQ(constraint->next(ended, vocabulary.end_ids[0]), ended);
  EXPECT_EQ(constraint->next(kDead, vocabulary.end_ids[0]), kDead);
  EXPECT_FALSE(constraint->accepts(kDead));
  EXPECT_THROW(constraint->allowed(kDead), std::invalid_argument);
  EXPECT_THROW(constraint->allowed(1 << 20), std::invalid_argument);
}

TEST(RegexGrammar, WhatIsNotSupportedIsNamed) {
  const GrammarCompiler& compiler = *vocabularies().front().compiler;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"(a)\\1", "back-references"},
      {"(?=a)b", "look-around"},
      {"(?<!a)b", "look-around"},
      {"(?i)a", "no flags"},
      {"\\bword", "word boundaries"},
      {"a++", "possessive"},
      {"(?>a)", "atomic"},
      {"a**", "a quantifier behind a quantifier"},
      {"*a", "nothing to repeat"},
      {"(a", "without its ')'"},
      {"a)", "without its '('"},
      {"[a", "without its ']'"},
      {"[b-a]", "the range is reversed"},
      {"a{3,2}", "is reversed"},
      {"a$b", "at its ends"},
      {"(a^)+b", "at its ends"},
      {"\\", "a backslash at the end"},
      {"\\q", "is not known"},
      {"\\p{Greek}", "general categories"},
      {"[[:alpha:]]", "is not offered"},
      {"\\x{D800}", "no character's"},
      {"a{100001}", "up to 100000"},
      {"\xff", "UTF-8"},
      {std::string(300, '('), "deeper than"},
      {"[^\\x{0}-\\x{10FFFF}]", "no text satisfies"},
      {"((a{1000}){1000}){1000}", "too large"},
      {"((){100000}){100000}", "too large"},
      {"(.{0,1000}x){0,1000}", "too large"},
  };
  for (const auto& [pattern, message] : cases) expect_refused([&] { compiler.regex(pattern); }, message);
  const Tokenizer& tokenizer = *vocabularies().front().tokenizer;
  expect_refused([&] { GrammarCompiler(tokenizer, {}, 100); }, "at least one id");
  expect_refused([&] { GrammarCompiler(tokenizer, {100}, 100); }, "outside of the vocabulary");
}

// Patterns whose deterministic automaton is too large as a whole cost only what a text needs.
TEST(RegexGrammar, LargeAutomataAreMadeAsTheyAreNeeded) {
  const Vocabulary& vocabulary = vocabularies().front();
  RandomStream random({3});
  for (const std::string pattern : {"(a|b)*a(a|b){60}", "(a?){200}a{200}", "(a*)*(a*)*(a|aa|aaa)*b", "(x+x+)+y"}) {
    SCOPED_TRACE(pattern);
    const auto constraint = vocabulary.compiler->regex(pattern);
    for (int n = 0; n < 3; ++n) walk(*constraint, vocabulary, random, 80);
  }
}

TEST(RegexGrammar, ManyThreadsGetTheSameMasks) {
  const Vocabulary& vocabulary = vocabularies()[1];
  const std::string pattern = R"((\w+ (\[\d{1,3}(, \d{1,3}){3}\])?[.,;]? ?){1,40})";
  const auto alone = vocabulary.compiler->regex(pattern);
  const auto shared = vocabulary.compiler->regex(pattern);
  std::vector<std::string> texts(8);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < texts.size(); ++t)
    threads.emplace_back([&, t] {
      RandomStream random({t % 4});
      texts[t] = walk(*shared, vocabulary, random, 30);
    });
  for (std::thread& thread : threads) thread.join();
  for (std::size_t t = 0; t < texts.size(); ++t) {
    RandomStream random({t % 4});
    EXPECT_EQ(texts[t], walk(*alone, vocabulary, random, 30));
  }
}

TEST(JsonGrammar, TextsAreJsonObjects) {
  for (const Vocabulary& vocabulary : vocabularies()) {
    const auto constraint = vocabulary.compiler->json_object();
    RandomStream random({11});
    std::size_t deepest = 0;
    for (int n = 0; n < 150; ++n) {
      const std::string text = walk(*constraint, vocabulary, random, static_cast<int>(random.below(60)));
      const Json value = Json::parse(text, nullptr, false);
      ASSERT_TRUE(value.is_object()) << testing::PrintToString(text);
      deepest = std::max(deepest, text.size());
    }
    EXPECT_GT(deepest, 30u);
    walk(*constraint, vocabulary, random, 20, true);
  }
}

TEST(JsonGrammar, TakesUsualWritings) {
  for (const Vocabulary& vocabulary : vocabularies()) {
    const auto constraint = vocabulary.compiler->json_object();
    const Json value = {{"a", {1, 2.5, -3e-7, "x\ty \"q\" 肺 \u0001", nullptr, true}},
                        {"b", Json::object()},
                        {"c", {{"d", Json::array()}}}};
    for (const std::string& text : {value.dump(), value.dump(2), value.dump(4), value.dump(1, '\t'),
                                    std::string(R"({"a": 1, "b": "\ud83e\udec1\/"})"), std::string("{}")}) {
      EXPECT_TRUE(accepts_ids(*constraint, vocabulary.tokenizer->encode(text))) << text;
    }
    for (const std::string text :
         {"[]", "{\"a\":1", " {}", "{}  ", "{\"a\":01}", "{\"a\":\"\n\"}", R"({"a":"\ud83e"})", R"({"a":"\udec1"})",
          R"({"a":+1})", R"({"a":1.})", R"({"a":.5})", R"({"a":1,})", R"({a:1})", "{\"a\":  1}", R"({"a":tru})"})
      EXPECT_FALSE(accepts_bytes(*constraint, vocabulary, text)) << text;
  }
  const Vocabulary& vocabulary = vocabularies().front();
  const auto compact = vocabulary.compiler->json_object({.max_depth = 2, .whitespace = false});
  EXPECT_TRUE(accepts_bytes(*compact, vocabulary, R"({"a":{"b":1}})"));
  EXPECT_FALSE(accepts_bytes(*compact, vocabulary, R"({"a": 1})"));
  EXPECT_FALSE(accepts_bytes(*compact, vocabulary, R"({"a":{"b":{"c":1}}})"));
  expect_refused([&] { vocabulary.compiler->json_object({.max_depth = 0}); }, "max_depth");
}

struct SchemaCase {
  std::string schema;
  std::vector<std::string> good, bad;
};

TEST(JsonSchemaGrammar, TakesWhatSatisfiesTheSchema) {
  const std::vector<SchemaCase> cases = {
      {R"({"type": "object", "properties": {"answer": {"enum": ["A", "B"]}, "note": {"type": "string"},
           "n": {"type": "integer", "minimum": 0}}, "required": ["answer"], "additionalProperties": false})",
       {R"({"answer": "A"})", R"({"answer":"B","note":"x"})", R"({"answer": "A", "n": 0})",
        R"({"answer": "A", "note": "", "n": 120})"},
       {"{}", R"({"note": "x"})", R"({"answer": "C"})", R"({"answer": "A", "n": -1})", R"({"answer": "A", "x": 1})",
        R"({"answer": "A",})"}},
      {R"({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}}})",
       {"{}", R"({"a": null})", R"({"b": true})", R"({"a": null, "b": false})"},
       {R"({"c": 1})", R"({"b": true, "a": null})"}},
      {R"({"type": "object", "properties": {"ab": {"type": "integer"}}, "additionalProperties": {"type": "string"}})",
       {"{}", R"({"ab": 1})", R"({"ab": 1, "a": "x"})", R"({"abc": "x", "": "y", "b": "z"})", R"({"a肺": "x"})"},
       {R"({"ab": "x"})", R"({"x": 1})", R"({"a\u0062": "x"})"}},
      {R"({"type": "object", "required": ["x"], "additionalProperties": {"type": "integer"}})",
       {R"({"x": 1})", R"({"x": 1, "y": 2})"},
       {"{}", R"({"y": 2})", R"({"x": "1"})"}},
      {R"({"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 336}, "minItems": 4, "maxItems": 4})",
       {"[1, 2, 336, 99]", "[1,2,3,4]", "[\n  1,\n  2,\n  3,\n  4\n]"},
       {"[]", "[1, 2, 3]", "[1, 2, 3, 4, 5]", "[0, 1, 2, 3]", "[1, 2, 3, 337]", "[1, 2, 3, 1000]", "[01, 2, 3, 4]"}},
      {R"({"type": "array", "prefixItems": [{"const": "box"}, {"type": "number"}], "items": false, "minItems": 2})",
       {R"(["box", 1.5])"},
       {"[]", R"(["box"])", R"(["box", 1, 2])"}},
      {R"({"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}})",
       {"[]", "[1]", "[1, 2]", "[1, 2, 2, 2]"},
       {"[2]", "[1, 1]"}},
      {R"({"type": "array", "maxItems": 0})", {"[]", "[ ]"}, {"[1]"}},
      {R"({"type": "string", "minLength": 2, "maxLength": 3})",
       {R"("ab")", R"("肺炎癌")", R"("\n\"")", R"("\ud83e\udec1b")"},
       {R"("a")", R"("abcd")", R"("")"}},
      {R"({"type": "string", "minLength": 1})", {R"("a")", R"("abcdefgh")"}, {R"("")"}},
      {R"({"type": "string", "pattern": "^[a-c]+\"\\\\$"})", {R"("ab\"\\")"}, {R"("ab")", R"("\"\\")", R"("ab"\")"}},
      {R"({"type": "string", "pattern": "b|^c"})", {R"("abc")", R"("b")", R"("cx")", R"("\nb")"}, {R"("ac")", R"("")"}},
      {R"({"type": "string", "format": "date"})",
       {R"("2026-11-30")", R"("2025-02-28")", R"("1999-12-31")"},
       {R"("2026-11-31")", R"("2026-13-01")", R"("26-1-1")"}},
      {R"({"type": "string", "format": "date-time"})", {R"("2026-11-22T05:07:09.25+01:00")"}, {R"("2026-11-22")"}},
      {R"({"type": "string", "format": "uuid"})", {R"("123e4567-e89b-12d3-a456-426614174000")"}, {R"("123e4567")"}},
      {R"({"type": "string", "format": "ipv4"})", {R"("255.0.10.99")"}, {R"("256.0.0.1")", R"("1.2.3")"}},
      {R"({"type": "string", "format": "email"})", {R"("a.b@example.org")"}, {R"("a.b")", R"("@x.org")"}},
      {R"({"type": "integer"})", {"0", "-17", "123456789012345"}, {"-", "1.5", "007", "1e3"}},
      {R"({"type": "integer", "minimum": -5, "maximum": 12})",
       {"-5", "-1", "0", "9", "10", "12"},
       {"-6", "-10", "13", "20", "-0", "120"}},
      {R"({"type": "integer", "exclusiveMinimum": 99, "exclusiveMaximum": 201})",
       {"100", "150", "199", "200"},
       {"99", "201", "9", "1000"}},
      {R"({"type": "integer", "maximum": -3})", {"-3", "-400"}, {"-2", "0", "3"}},
      {R"({"type": "number", "minimum": 0, "maximum": 1})",
       {"0", "0.5", "0.99999", "1", "1.0", "0.0"},
       {"1.00001", "-0.5", "2", "00", "0.", "10"}},
      {R"({"type": "number", "minimum": -0.25, "exclusiveMaximum": 12.5})",
       {"-0.25", "-0.1", "0", "12.49999", "12.4", "7"},
       {"-0.26", "12.5", "12.50", "13", "-1"}},
      {R"({"type": "number"})", {"1", "-2.5e10", "0.125"}, {"1e999", ".5", "1.e5"}},
      {R"({"anyOf": [{"type": "null"}, {"type": "string", "enum": ["x"]}]})", {"null", R"("x")"}, {R"("y")", "1"}},
      {R"({"type": ["integer", "null"], "minimum": 3})", {"null", "3"}, {"2", "true"}},
      {R"({"enum": [1, "a", null, {"k": [1, 2]}, []]})",
       {"1", R"("a")", "null", R"({"k": [1, 2]})", "[]"},
       {"2", "{}"}},
      {R"({"type": "string", "enum": ["a", 1]})", {R"("a")"}, {"1"}},
      {R"({"const": "<think>"})", {}, {"1"}},
      {R"({"minimum": 5})", {"5"}, {"4", "null"}},
      {"true", {"1", "null", R"({"a": [1]})"}, {"x"}},
      {R"({"title": "T", "description": "any"})", {"[]", "\"x\""}, {"nul"}},
      {R"({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer"},
           "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["v", "next"]}}})",
       {R"({"v": 1, "next": null})", R"({"v": 1, "next": {"v": 2, "next": {"v": 3, "next": null}}})"},
       {R"({"v": 1})", "null", R"({"v": 1, "next": 2})"}},
      {R"({"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}})",
       {"{}", R"({"children": [{}, {"children": []}]})"},
       {R"({"children": [1]})"}},
      {R"({"allOf": [{"type": "null"}]})", {"null"}, {"1"}},
  };
  for (const Vocabulary& vocabulary : vocabularies()) {
    for (const SchemaCase& c : cases) {
      SCOPED_TRACE(vocabulary.name + ": " + c.schema);
      const auto constraint = vocabulary.compiler->json_schema(Json::parse(c.schema));
      for (const std::string& text : c.good) {
        EXPECT_TRUE(accepts_bytes(*constraint, vocabulary, text)) << text;
        EXPECT_TRUE(accepts_ids(*constraint, vocabulary.tokenizer->encode(text))) << text;
      }
      for (const std::string& text : c.bad) EXPECT_FALSE(accepts_bytes(*constraint, vocabulary, text)) << text;
      RandomStream random({13});
      for (int n = 0; n < 8; ++n) {
        const std::string text = walk(*constraint, vocabulary, random, static_cast<int>(random.below(25)));
        EXPECT_FALSE(Json::parse(text, nullptr, false).is_discarded()) << testing::PrintToString(text);
      }
    }
  }
}

// All integers near the bounds, and all decimals.
TEST(JsonSchemaGrammar, BoundsAreExact) {
  const Vocabulary& vocabulary = vocabularies().front();
  RandomStream random({17});
  for (int n = 0; n < 60; ++n) {
    const std::int64_t size = std::int64_t{1} << random.below(12);
    const auto draw = [&] {
      return static_cast<std::int64_t>(random.below(2 * static_cast<std::uint64_t>(size) + 1)) - size;
    };
    std::int64_t low = draw(), high = draw();
    if (low > high) std::swap(low, high);
    const auto integers = vocabulary.compiler->json_schema({{"type", "integer"}, {"minimum", low}, {"maximum", high}});
    for (std::int64_t i = low - 30; i <= high + 30; i += i < low + 30 || i > high - 30 ? 1 : 37)
      ASSERT_EQ(accepts_bytes(*integers, vocabulary, std::to_string(i)), low <= i && i <= high)
          << i << " in " << low << " .. " << high;
    const auto numbers = vocabulary.compiler->json_schema({{"type", "number"},
                                                           {"minimum", static_cast<double>(low) / 100},
                                                           {"maximum", static_cast<double>(high) / 100}});
    for (std::int64_t i = low - 30; i <= high + 30; ++i) {
      const std::string sign = i < 0 ? "-" : "";
      const std::string text = fmt::format("{}{}.{:02}", sign, std::abs(i) / 100, std::abs(i) % 100);
      const bool zero = i == 0;
      ASSERT_EQ(accepts_bytes(*numbers, vocabulary, text), low <= i && i <= high)
          << text << " in " << low << " .. " << high;
      if (!zero && i % 100 == 0)
        ASSERT_EQ(accepts_bytes(*numbers, vocabulary, std::to_string(i / 100)), low <= i && i <= high) << text;
    }
  }
}

TEST(JsonSchemaGrammar, WhatIsNotSupportedIsNamed) {
  const GrammarCompiler& compiler = *vocabularies().front().compiler;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"oneOf": [{}]})", "'oneOf' is not supported; use anyOf"},
      {R"({"type": "object", "properties": {"a": {"not": {}}}})", "at #/properties/a: the keyword 'not'"},
      {R"({"type": "array", "uniqueItems": true})", "'uniqueItems'"},
      {R"({"type": "integer", "multipleOf": 3})", "'multipleOf'"},
      {R"({"type": "object", "patternProperties": {}})", "'patternProperties'"},
      {R"({"type": "int"})", "is no type"},
      {R"({"$ref": "https://example.org/x.json"})", "only places of the same document"},
      {R"({"$ref": "#/$defs/none"})", "there is no #/$defs/none"},
      {R"({"$ref": "#"})", "no text satisfies"},
      {R"({"anyOf": [{}], "type": "string"})", "'type' beside anyOf"},
      {R"({"allOf": [{}, {}]})", "one member"},
      {R"({"type": "string", "format": "hostname"})", "the format 'hostname'"},
      {R"x({"type": "string", "pattern": "(?=x)"})x", "look-around"},
      {R"({"type": "string", "pattern": "x", "maxLength": 3})", "one of pattern, format"},
      {R"({"type": "integer", "minimum": 3, "maximum": 2})", "no number"},
      {R"({"type": "string", "minLength": 3, "maxLength": 2})", "below minLength"},
      {R"({"type": "string", "minLength": -3})", "should be a count"},
      {R"({"type": "string", "maxLength": 1000000})", "too large"},
      {R"({"type": "array", "minItems": 1000000})", "up to 10000"},
      {R"({"enum": [], "type": "string"})", "no value is left"},
      {R"({"enum": ["a"], "minLength": 3})", "beside enum"},
      {R"({"type": "object", "required": ["a"], "additionalProperties": false})", "no text satisfies"},
      {"false", "no text satisfies"},
      {"3", "expected an object"},
  };
  for (const auto& [schema, message] : cases)
    expect_refused([&] { compiler.json_schema(Json::parse(schema)); }, message);
  Json deep = Json::object();
  for (int i = 0; i < 300; ++i) deep = {{"anyOf", Json::array({deep})}};
  expect_refused([&] { compiler.json_schema(deep); }, "nested deeper");
}

TEST(ResponseGrammar, TextsParseAndBoxesLieInTheFrame) {
  const auto frame = grounding::BoxFrame::stretch(336, 280);
  for (const Vocabulary& vocabulary : vocabularies()) {
    for (const bool think : {true, false}) {
      ResponseGrammar grammar{.think = think, .frame_width = 336, .frame_height = 280, .min_regions = 1};
      const auto constraint = vocabulary.compiler->response(grammar);
      RandomStream random({19, think ? 1u : 0u});
      std::size_t boxes = 0;
      for (int n = 0; n < 80; ++n) {
        const std::string text = walk(*constraint, vocabulary, random, static_cast<int>(random.below(90)));
        const auto parsed = grounding::parse_response(text, frame, think);
        ASSERT_TRUE(parsed.complete) << parsed.problem << ": " << text;
        ASSERT_EQ(parsed.has_think, think);
        ASSERT_TRUE(parsed.bad_boxes.empty() && parsed.bad_think_boxes.empty()) << text;
        ASSERT_FALSE(parsed.regions.empty());
        for (const auto* regions : {&parsed.regions, &parsed.think_regions})
          for (const grounding::Region& region : *regions) {
            ++boxes;
            ASSERT_TRUE(region.box.x1 >= 0 && region.box.x1 < region.box.x2 && region.box.x2 <= 336) << text;
            ASSERT_TRUE(region.box.y1 >= 0 && region.box.y1 < region.box.y2 && region.box.y2 <= 280) << text;
          }
      }
      EXPECT_GE(boxes, 80u);
      walk(*constraint, vocabulary, random, 25, true);
    }
  }
}

TEST(ResponseGrammar, TakesWhatTheReleaseWrites) {
  const std::string reasoning =
      "The right lower zone (region [51, 190, 140, 281]) shows an opacity.\nNo effusion; 3 x 4 cm.";
  const grounding::BoxFrame frame = grounding::BoxFrame::letterbox(336);
  const std::vector<grounding::Region> regions = {{"right lower lung zone", {51, 190, 140, 281, frame}},
                                                  {"left lung", {0, 0, 336, 336, frame}}};
  const std::string text = "<think>" + reasoning + "</think>" + grounding::format_response("A, C", regions);
  for (const Vocabulary& vocabulary : vocabularies()) {
    ResponseGrammar grammar{.frame_width = 336, .frame_height = 336};
    EXPECT_TRUE(accepts_ids(*vocabulary.compiler->response(grammar), vocabulary.tokenizer->encode(text)));
    const std::string plain = "<think>x</think>" + grounding::format_response("yes", {});
    EXPECT_TRUE(accepts_ids(*vocabulary.compiler->response(grammar), vocabulary.tokenizer->encode(plain)));
    grammar.answers = {"A", "B", "C", "D"};
    EXPECT_FALSE(accepts_ids(*vocabulary.compiler->response(grammar), vocabulary.tokenizer->encode(text)));
    grammar.several_answers = true;
    grammar.regions = {"left lung", "right lower lung zone"};
    EXPECT_TRUE(accepts_ids(*vocabulary.compiler->response(grammar), vocabulary.tokenizer->encode(text)));
    grammar.max_regions = 1;
    EXPECT_FALSE(accepts_ids(*vocabulary.compiler->response(grammar), vocabulary.tokenizer->encode(text)));
    grammar.max_regions = 2;
    grammar.frame_width = 300;
    EXPECT_FALSE(accepts_ids(*vocabulary.compiler->response(grammar), vocabulary.tokenizer->encode(text)));
    grammar.frame_width = 336;
    grammar.regions = {"left lung"};
    EXPECT_FALSE(accepts_ids(*vocabulary.compiler->response(grammar), vocabulary.tokenizer->encode(text)));
  }
}

// Every box of a small frame, and only those.
TEST(ResponseGrammar, AllBoxesOfAFrameAndNoOther) {
  const Vocabulary& vocabulary = vocabularies().front();
  const auto constraint = vocabulary.compiler->response(
      {.think = false, .answers = {"x"}, .frame_width = 12, .frame_height = 2, .min_regions = 1});
  State start = constraint->start();
  for (const std::int64_t id :
       vocabulary.tokenizer->encode("<response><answer>x</answer><location><ref>a</ref><box>")) {
    start = constraint->next(start, id);
    ASSERT_NE(start, kDead);
  }
  const auto accepted = [&](const std::string& box) {
    State state = start;
    for (const std::int64_t id : vocabulary.tokenizer->encode(box + "</box>", TextPlace::kInside)) {
      state = constraint->next(state, id);
      if (state == kDead) return false;
    }
    return true;
  };
  for (int x1 = 0; x1 <= 13; ++x1)
    for (int y1 = 0; y1 <= 3; ++y1)
      for (int x2 = 0; x2 <= 13; ++x2)
        for (int y2 = 0; y2 <= 3; ++y2)
          ASSERT_EQ(accepted(fmt::format("[{}, {}, {}, {}]", x1, y1, x2, y2)),
                    x1 < x2 && y1 < y2 && x2 <= 12 && y2 <= 2)
              << x1 << " " << y1 << " " << x2 << " " << y2;
  for (const std::string box : {"[00, 0, 1, 1]", "[0,0,1,1]", "[0, 0, 1]", "[-1, 0, 1, 1]", "[0, 0, 1.5, 1]"})
    EXPECT_FALSE(accepted(box)) << box;
}

TEST(ResponseGrammar, WrongOptionsAreNamed) {
  const GrammarCompiler& compiler = *vocabularies().front().compiler;
  expect_refused([&] { compiler.response({}); }, "0 x 0");
  expect_refused([&] { compiler.response({.frame_width = 2000000, .frame_height = 1}); }, "sides of 1 to 999999");
  expect_refused([&] { compiler.response({.answers = {"<b>"}, .frame_width = 1, .frame_height = 1}); }, "answers");
  expect_refused([&] { compiler.response({.frame_width = 1, .frame_height = 1, .min_regions = 3, .max_regions = 2}); },
                 "from 3 to 2");
}

}  // namespace
}  // namespace thinkvg::text
