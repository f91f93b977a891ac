#include "thinkvg/eval/results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "thinkvg/core/manifest.h"

namespace thinkvg::eval {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(SubsetText, NamesEverythingThatLeftQuestionsOut) {
  data::DataOptions options;
  EXPECT_EQ(subset_text({3960, 3960}, options), "all 3,960 questions");
  EXPECT_EQ(subset_text({100, 3960}, options), "the first 100 of 3,960 questions");
  EXPECT_EQ(subset_text({3900, 3900, 60, 2}, options),
            "all 3,900 questions; 60 left out without their picture; 2 rows could not be read");
  options.filter = "type == \"closed\"";
  options.patients = "0.9:1";
  options.per_picture = 4;
  options.mix = {"other.jsonl=0.5"};
  EXPECT_THAT(subset_text({10, 10}, options),
              AllOf(HasSubstr("; filter: type == \"closed\""), HasSubstr("; patients 0.9:1 by seed 0"),
                    HasSubstr("; at most 4 a picture"), HasSubstr("; mixed with other.jsonl=0.5")));
}

TEST(Provenance, IsToldInWordsAndInFiles) {
  Provenance provenance;
  provenance.subset = "all 9 questions";
  provenance.data_sha256 = std::string(64, 'd');
  provenance.seed = 7;
  const std::string text = provenance_text(provenance);
  EXPECT_THAT(text, AllOf(HasSubstr("subset: all 9 questions\n"), HasSubstr("prompt: not said\n"),
                          HasSubstr("judge: none\n"), HasSubstr("predictions not known, of the data dddddddddddddddd;"),
                          HasSubstr("seed 7; thinkvg " + version())));
  const Json json = provenance_to_json(provenance);
  for (const char* name : {"subset", "prompt", "judge", "model_sha256", "data_sha256", "seed", "version"})
    EXPECT_TRUE(json.contains(name)) << name;
  EXPECT_TRUE(json["judge"].is_null());
}

TEST(PredictionLine, HoldsWhatPairedTestsNeed) {
  data::Sample sample;
  sample.id = "1";
  sample.type = data::QuestionType::open;
  sample.answer = "the heart is large";
  sample.frame = grounding::BoxFrame::letterbox(336);
  const grounding::ImageGeometry geometry({100, 100});
  const std::string response = "<response><answer>large heart</answer></response>";
  QuestionScore score = score_question({sample, response, sample.frame, geometry}, {});
  Json line = prediction_line({sample, score, response, sample.frame, geometry, {}, {}});
  EXPECT_DOUBLE_EQ(line["token_f1"].get<double>(), *score.token_f1);
  EXPECT_FALSE(line.contains("judge"));
  score.judge = JudgeScore{6, 8};
  line = prediction_line({sample, score, response, sample.frame, geometry, {}, {}});
  EXPECT_EQ(line["judge"], (Json{{"model", 6.0}, {"reference", 8.0}}));
  sample.type = data::QuestionType::closed;
  score = score_question({sample, response, sample.frame, geometry}, {});
  EXPECT_FALSE(prediction_line({sample, score, response, sample.frame, geometry, {}, {}}).contains("token_f1"));
}

}  // namespace
}  // namespace thinkvg::eval
