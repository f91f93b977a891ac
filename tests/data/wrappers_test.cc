#include "thinkvg/data/wrappers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include <chrono>
#include <map>
#include <set>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/filter.h"
#include "thinkvg/data/options.h"

namespace thinkvg::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Sample make_sample(int i) {
  Sample sample;
  sample.id = std::to_string(i);
  sample.patient = fmt::format("p1{:07}", i / 6);
  sample.image = fmt::format("{}/{}.jpg", sample.patient, i / 3);
  sample.type = static_cast<QuestionType>(i % 4);
  sample.question = "q";
  sample.think = "because";
  sample.answer = "a";
  return sample;
}

DatasetPtr many(int count) {
  std::vector<Sample> samples;
  for (int i = 0; i < count; ++i) samples.push_back(make_sample(i));
  return make_dataset(std::move(samples), {{7, "bad"}});
}

std::vector<std::string> ids(const DatasetPtr& dataset) {
  std::vector<std::string> all;
  for (std::int64_t i = 0; i < dataset->size(); ++i) all.push_back(dataset->get(i).id);
  return all;
}

std::set<std::string> patients(const DatasetPtr& dataset) {
  std::set<std::string> all;
  for (std::int64_t i = 0; i < dataset->size(); ++i) all.insert(dataset->get(i).patient);
  return all;
}

Sample rich_sample() {
  Sample sample;
  sample.id = "q1";
  sample.image = "p10/x.jpg";
  sample.type = QuestionType::single_choice;
  sample.question = "Is there a Nodule on the left?";
  sample.choices = {"A: yes", "B: no"};
  sample.think = "one two  three";
  sample.answer = "A";
  sample.frame = grounding::BoxFrame::letterbox(336);
  sample.regions = {{"left lung", {1, 2, 3, 4, sample.frame}}, {"left lung", {2, 2, 3, 4, sample.frame}}};
  sample.split = "train";
  sample.fields = {{"q_lang", "en"}};
  return sample;
}

TEST(Filter, SaysWhatItIsToldTo) {
  const Sample sample = rich_sample();
  const std::vector<std::pair<const char*, bool>> cases = {
      {"type == \"single\" and num_boxes > 1 and question ~ \"nodule\"", true},
      {"type == 'single_choice'", true},
      {"'multi' == type", false},
      {"type in ('open', 'single')", true},
      {"type in (\"open\", \"closed\")", false},
      {"num_boxes == 2 and num_regions == 1 and num_choices == 2 and num_images == 1", true},
      {"think_words == 3 and question_words == 7 and answer_words <= 1", true},
      {"num_boxes >= 3 or num_boxes < 2", false},
      {"not has_think", false},
      {"has_think == true", true},
      {"has_think and not (split == 'test' or id == 'q2')", true},
      {"fields.q_lang == 'en' and fields.modality == ''", true},
      {"regions ~ 'LEFT LUNG' and question !~ 'mass'", true},
      {"frame == 'letterbox-336' and content_type == ''", true},
      {"answer != \"B\" and answer == 'A'", true},
      {"question ~ ''", true},
      {"id in ('a', 'q1')", true},
      {"num_boxes in (1, 2.0)", true},
      {"not not true and not false", true},
      // "and" binds closer than "or".
      {"true or true and false", true},
      {"(true or true) and false", false},
      {"'it''s' == 'x' or true", true}};
  for (const auto& [expression, expected] : cases) {
    if (std::string_view(expression).find("''s'") != std::string_view::npos) {
      EXPECT_THROW(Filter{expression}, std::invalid_argument) << "quotes are escaped with a backslash";
      continue;
    }
    EXPECT_EQ(Filter(expression).matches(sample), expected) << expression;
  }
  EXPECT_TRUE(Filter("'it\\'s \"x\"\\n' == \"it's \\\"x\\\"\\n\"").matches(sample));
}

TEST(Filter, WrongExpressionsSayWhereAndWhy) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"", "character 1: expected a field or a value, but found the end"},
      {"type == ", "character 9: expected a field or a value, but found the end"},
      {"type = 'open'", "character 6: expected '==' (equality is written with two signs)"},
      {"typ == 'open'", "unknown field 'typ', did you mean 'type'?"},
      {"type == 'essay'", "'essay' is no question type"},
      {"num_boxes > '1'", "character 13: a number is compared with a text"},
      {"question > 'a'", "expected numbers around '>', but this is a text"},
      {"num_boxes ~ 1", "expected texts around '~', but this is a number"},
      {"num_boxes", "character 1: expected a condition, but this is a number"},
      {"has_think and question", "character 15: expected a condition behind 'and', but this is a text"},
      {"(has_think", "character 11: expected ')', but found the end"},
      {"has_think has_think", "character 11: expected 'and', 'or' or the end, but found 'has_think'"},
      {"id in 'a'", "expected '(' behind 'in'"},
      {"id in ('a' 'b')", "expected ',' or ')'"},
      {"id in (1)", "a text is compared with a number"},
      {"id == \"a", "the text that begins here lacks its closing \""},
      {"id == #", "expected a field, a value or an operator, but found '#'"},
      {"not num_boxes", "expected a condition behind 'not'"}};
  for (const auto& [expression, message] : cases) {
    try {
      Filter filter(expression);
      ADD_FAILURE() << "no error for " << expression;
    } catch (const std::invalid_argument& error) {
      EXPECT_THAT(error.what(), HasSubstr(message)) << expression;
    }
  }
}

TEST(Filter, HostileExpressionsEndInAnError) {
  for (const std::string& part : {std::string("("), std::string("not "), std::string("\""), std::string("true and ")}) {
    std::string text;
    while (text.size() < 100'000) text += part;
    EXPECT_THROW(Filter{text}, std::invalid_argument) << part;
  }
  const std::vector<std::string> pieces = {"type", "==", "'open'", "(",        ")", "and", "or",
                                           "not",  "in", ",",      "1",        "~", "id",  "<",
                                           "true", " ",  "-",      "fields.x", "'", "!",   "has_think"};
  RandomStream random({51});
  const Sample sample = rich_sample();
  int good = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (std::int64_t i = random.between(1, 8); i > 0; --i) text += pieces[random.below(pieces.size())] + " ";
    try {
      Filter(text).matches(sample);
      ++good;
    } catch (const std::invalid_argument&) {
    }
  }
  EXPECT_GT(good, 100);
}

TEST(FilterWrapper, KeepsWhatMatchesInOrder) {
  const DatasetPtr chosen = filter(many(20), "type == 'open' and id != '4'");
  EXPECT_THAT(ids(chosen), ElementsAre("0", "8", "12", "16"));
  EXPECT_EQ(chosen->bad_rows().size(), 1u);
}

TEST(PatientRange, RangesShareNoPatientAndMissNone) {
  const DatasetPtr source = many(600);
  const DatasetPtr train = patient_range(source, 0, 0.8, 3), dev = patient_range(source, 0.8, 0.9, 3);
  const DatasetPtr test = patient_range(source, 0.9, 1, 3);
  EXPECT_EQ(patients(train).size(), 80u);
  EXPECT_EQ(patients(dev).size(), 10u);
  EXPECT_EQ(patients(test).size(), 10u);
  std::set<std::string> all = patients(train);
  all.merge(patients(dev));
  all.merge(patients(test));
  EXPECT_EQ(all.size(), 100u);
  EXPECT_EQ(train->size() + dev->size() + test->size(), 600);
  EXPECT_EQ(ids(patient_range(source, 0, 0.125, 3)), ids(patient_fraction(source, 0.125, 3)));
  EXPECT_THROW(patient_range(source, 0.5, 0.4, 3), std::invalid_argument);
}

TEST(Caps, HoldForEveryGroupAndFollowTheSeed) {
  const DatasetPtr source = many(600);
  const DatasetPtr per_picture = cap(source, {.per_picture = 2}, 1);
  EXPECT_EQ(per_picture->size(), 400);
  const DatasetPtr both = cap(source, {.per_type = 20, .per_picture = 1}, 1);
  std::map<QuestionType, int> types;
  std::map<std::string, int> pictures;
  for (std::int64_t i = 0; i < both->size(); ++i) {
    ++types[both->get(i).type];
    ++pictures[both->get(i).image];
  }
  EXPECT_EQ(types.size(), 4u);
  for (const auto& [type, count] : types) EXPECT_EQ(count, 20) << question_type_name(type);
  for (const auto& [image, count] : pictures) EXPECT_EQ(count, 1) << image;
  EXPECT_EQ(cap(source, {.per_patient = 1}, 1)->size(), 100);
  EXPECT_EQ(ids(both), ids(cap(source, {.per_type = 20, .per_picture = 1}, 1)));
  EXPECT_NE(ids(both), ids(cap(source, {.per_type = 20, .per_picture = 1}, 2)));
  const std::vector<std::string> kept = ids(both);
  EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end(),
                             [](const auto& a, const auto& b) { return std::stoi(a) < std::stoi(b); }));
  EXPECT_THROW(cap(source, {.per_type = -1}, 1), std::invalid_argument);
}

TEST(WithThink, SharesAreNested) {
  const DatasetPtr source = many(2000);
  const auto kept = [&](double share) {
    const DatasetPtr set = with_think(source, share, 9);
    EXPECT_EQ(set->size(), 2000);
    std::set<std::int64_t> all;
    for (std::int64_t i = 0; i < set->size(); ++i) {
      if (!set->get(i).think.empty()) all.insert(i);
    }
    return all;
  };
  const auto quarter = kept(0.25), half = kept(0.5);
  EXPECT_NEAR(static_cast<double>(quarter.size()), 500, 80);
  EXPECT_TRUE(std::includes(half.begin(), half.end(), quarter.begin(), quarter.end()));
  EXPECT_TRUE(kept(0).empty());
  EXPECT_EQ(kept(1).size(), 2000u);
}

TEST(Mixture, AnyBeginningHasTheShares) {
  const DatasetPtr mixed = mixture({{many(300), "a", 3}, {many(50), "b", 1}}, 0, 4);
  EXPECT_EQ(mixed->size(), 400) << "until the longest part, 300 at 3 of 4, has been shown";
  std::map<std::string, std::int64_t> counts;
  std::set<std::string> all;
  for (std::int64_t i = 0; i < mixed->size(); ++i) {
    const Sample sample = mixed->get(i);
    ++counts[sample.fields.at("source")];
    EXPECT_TRUE(all.insert(sample.id).second) << sample.id;
    EXPECT_NEAR(static_cast<double>(counts["a"]), 0.75 * static_cast<double>(i + 1), 1.0);
  }
  EXPECT_EQ(counts["a"], 300);
  EXPECT_EQ(counts["b"], 100) << "twice around";
  EXPECT_TRUE(all.contains("b/49") && all.contains("b/49~2"));
  EXPECT_EQ(mixed->bad_rows().size(), 2u);
  EXPECT_THAT(mixed->bad_rows()[0].reason, HasSubstr("a: bad"));
  EXPECT_EQ(ids(mixed), ids(mixture({{many(300), "a", 3}, {many(50), "b", 1}}, 0, 4)));
  EXPECT_NE(ids(mixed), ids(mixture({{many(300), "a", 3}, {many(50), "b", 1}}, 0, 5)));
  EXPECT_EQ(mixture({{many(300), "a", 1}}, 10, 4)->size(), 10);
  EXPECT_THROW(mixture({{many(3), "a", 0}}, 0, 4), std::invalid_argument);
  EXPECT_THROW(mixture({{many(3), "a", 1}, {many(3), "a", 1}}, 0, 4), std::invalid_argument);
  EXPECT_THROW(mixture({}, 0, 4), std::invalid_argument);
}

class DataSettings : public ::testing::Test {
 protected:
  DataSettings() {
    std::string lines;
    for (int i = 0; i < 60; ++i)
      lines += fmt::format(
          "{{\"id\": \"{0}\", \"images\": [\"p10/p1000{1:04}/s1/{0}.jpg\"], \"question\": \"q {2}\", \"answer\": "
          "\"{3}\", "
          "\"think\": \"t\"}}\n",
          i, i / 3, i % 5, i % 2 == 0 ? "yes" : "a mass");
    write_file_atomically(folder_ / "a.jsonl", lines);
    write_file_atomically(folder_ / "b.jsonl", lines);
    write_file_atomically(folder_ / "bad.jsonl", lines + "{\n");
    options_.path = (folder_ / "a.jsonl").string();
  }
  test::TemporaryFolder folder_;
  DataOptions options_;
};

TEST_F(DataSettings, PutTheWrappersAroundTheSet) {
  EXPECT_EQ(open_data(options_)->size(), 60);
  options_.filter = "type == 'closed'";
  EXPECT_EQ(open_data(options_)->size(), 30);
  options_.patients = "0:0.5";
  const auto half = open_data(options_);
  options_.patients = "0.5:1";
  EXPECT_EQ(half->size() + open_data(options_)->size(), 30);
  options_.per_patient = 1;
  EXPECT_EQ(open_data(options_)->size(), 10);
  options_.think = 0;
  EXPECT_EQ(open_data(options_)->get(0).think, "");
  options_.mix = {(folder_ / "b.jsonl").string() + "=0.5"};
  const auto mixed = open_data(options_);
  EXPECT_EQ(mixed->size(), 30) << "10 at a third of the mixture";
  EXPECT_THAT(mixed->get(0).id, HasSubstr("a.jsonl/"));
  options_.limit = 4;
  EXPECT_EQ(open_data(options_)->size(), 4);
}

TEST_F(DataSettings, WrongOnesAreExplained) {
  const auto error_of = [&](const DataOptions& options) -> std::string {
    try {
      open_data(options);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "no error";
  };
  DataOptions options = options_;
  options.filter = "id == 'none'";
  EXPECT_THAT(error_of(options), HasSubstr("no question is left"));
  options = options_;
  options.patients = "0.5";
  EXPECT_THAT(error_of(options), HasSubstr("BEGIN:END"));
  options = options_;
  options.mix = {options.path + "=much"};
  EXPECT_THAT(error_of(options), HasSubstr("FILE=WEIGHT"));
  options = options_;
  options.path = (folder_ / "bad.jsonl").string();
  EXPECT_THAT(error_of(options), AllOf(HasSubstr("1 unusable rows of 61"), HasSubstr("row 60: not JSON"),
                                       HasSubstr("skip_bad_rows"), HasSubstr("--fix")));
  options.skip_bad_rows = true;
  EXPECT_EQ(open_data(options)->size(), 60);
}

Sample turn_of(const std::string& id, const std::string& turn, const std::string& image = "1.jpg") {
  Sample sample;
  sample.id = id;
  sample.image = image;
  sample.question = "q" + turn;
  if (!turn.empty()) sample.fields["turn"] = turn;
  return sample;
}

TEST(JoinTurns, MakesOneSampleOfAConversation) {
  const DatasetPtr source =
      make_dataset({turn_of("a/0", "0"), turn_of("a/1", "1"), turn_of("b", "0"), turn_of("c", ""), turn_of("d/1", "1"),
                    turn_of("d/2", "2"), turn_of("e/0", "0"), turn_of("e/2", "2"), turn_of("a/2", "2")});
  const DatasetPtr joined = join_turns(source);
  std::vector<std::string> shown;
  for (std::int64_t i = 0; i < joined->size(); ++i) {
    const Sample sample = joined->get(i);
    std::string ids = sample.id;
    for (const Sample& turn : sample.more_turns) ids += " " + turn.id;
    shown.push_back(ids);
  }
  // d has lost its first turn and e the one between: what is left of them stays in order, and nothing is made up.
  EXPECT_THAT(shown, ElementsAre("a/0 a/1 a/2", "b", "c", "d/1 d/2", "e/0", "e/2"));
}

TEST(JoinTurns, KeepsPassesOfAMixtureAndPicturesApart) {
  const DatasetPtr source =
      make_dataset({turn_of("s/a/0", "0"), turn_of("s/a/0~2", "0"), turn_of("s/a/1~2", "1"), turn_of("s/a/1", "1"),
                    turn_of("x/0", "0", "1.jpg"), turn_of("x/1", "1", "2.jpg")});
  const DatasetPtr joined = join_turns(source);
  ASSERT_EQ(joined->size(), 4);
  EXPECT_EQ(joined->get(0).more_turns.front().id, "s/a/1");
  EXPECT_EQ(joined->get(1).more_turns.front().id, "s/a/1~2");
  EXPECT_TRUE(joined->get(2).more_turns.empty());
}

TEST(JoinTurns, LeavesASetWithoutConversationsAlone) {
  const DatasetPtr source = make_dataset({turn_of("a", ""), turn_of("b", "")});
  EXPECT_EQ(join_turns(source), source);
}

}  // namespace
}  // namespace thinkvg::data
