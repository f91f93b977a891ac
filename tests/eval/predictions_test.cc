#include "thinkvg/eval/predictions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::eval {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class PredictionsTest : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& content) const {
    const auto file = std::filesystem::temp_directory_path() / fmt::format("thinkvg-predictions-{}", getpid());
    write_file_atomically(file, content);
    return file;
  }
  PredictionFile read(const std::string& content, const PredictionOptions& options = {}) const {
    return read_predictions(write(content), options);
  }
};

grounding::ParsedResponse parsed(std::string_view text, TextFormat format) {
  return grounding::parse_response(to_tagged_response(text, format), grounding::BoxFrame::letterbox(336), false);
}

TEST_F(PredictionsTest, ReadsTheFilesOfOtherSystems) {
  const PredictionFile own = read(R"({"id": 3, "response": "x", "frame": "unit", "confidence": 0.25})"
                                  "\n\n"
                                  R"({"id": "b", "response": "<think>"})");
  EXPECT_EQ(own.format, TextFormat::tags);
  ASSERT_EQ(own.predictions.size(), 2u);
  EXPECT_EQ(own.predictions[0].id, "3");
  EXPECT_EQ(own.predictions[0].frame, grounding::BoxFrame::unit());
  EXPECT_EQ(own.predictions[0].confidence, 0.25);
  EXPECT_FALSE(own.predictions[1].confidence);

  const PredictionFile llava =
      read(R"({"question_id": 7, "prompt": "?", "text": "Yes, it is.", "answer_id": "a", "metadata": {}})");
  EXPECT_EQ(llava.format, TextFormat::plain);
  EXPECT_EQ(llava.id_key, "question_id");
  EXPECT_EQ(llava.predictions[0].id, "7");

  const PredictionFile results = read(R"({"accuracy": 0.5, "results": [
      {"question": "?", "model_output": "<answer>{\"bbox_2d\": [1, 2, 3, 4]}</answer>"}]})");
  EXPECT_EQ(results.format, TextFormat::box_json);
  EXPECT_FALSE(results.has_ids);

  const PredictionFile gemex = read(R"([{"q_id": 3, "q_type": "multi_choice", "type": "disease",
      "output": "<answer> A <reason> so <location> [[1, 2, 3, 4]]"}])");
  EXPECT_EQ(gemex.format, TextFormat::gemex);
  EXPECT_EQ(gemex.predictions[0].id, "multi_choice/3");

  PredictionOptions named;
  named.id_key = "key";
  named.text_key = "said";
  named.format = "gemex";
  const PredictionFile other = read(R"({"id": 1, "key": "k", "text": "t", "said": "s"})", named);
  EXPECT_EQ(other.predictions[0].id, "k");
  EXPECT_EQ(other.predictions[0].text, "s");
  EXPECT_EQ(other.format, TextFormat::gemex);
}

TEST_F(PredictionsTest, WhatIsNoPredictionIsAnError) {
  const auto failure = [&](const std::string& content, const std::string& message) {
    EXPECT_THAT([&] { read(content); }, ThrowsMessage<std::runtime_error>(HasSubstr(message))) << content;
  };
  failure("", "no predictions");
  failure("[]", "no predictions");
  failure("{\"id\": 1, \"response\": \"x\"}\n{\"id\": 1, \"response\": \"y\"}", "line 2: id '1' came before");
  failure("{\"id\": 1, \"response\": \"x\"}\n{\"id\": 2, \"resp", "line 2: not JSON");
  failure("{\"id\": 1, \"image\": \"x\"}", "--text_key");
  failure("{\"id\": 1.5, \"response\": \"x\"}", "whole number");
  failure("[{\"id\": 1, \"response\": \"x\"}, 5]", "entry 2: expected an object");
  failure("[{\"id\": 1,", "cut off");
  failure("{\"q_id\": 1, \"type\": \"disease\", \"text\": \"x\"}", "question_type");
  failure("{\"id\": 1, \"response\": \"x\", \"frame\": \"pixels\"}", "line 1: unknown box frame 'pixels'");
  failure("{\"id\": 1, \"response\": 5}", "must be text");
  PredictionOptions options;
  options.format = "xml";
  EXPECT_THROW(read("{\"id\": 1, \"response\": \"x\"}", options), std::invalid_argument);
}

TEST_F(PredictionsTest, ARequestThatFailedIsAnEmptyAnswer) {
  const PredictionFile file = read("{\"id\": 1, \"response\": null}\n{\"id\": 2, \"response\": \"x\"}");
  ASSERT_EQ(file.predictions.size(), 2u);
  EXPECT_EQ(file.text_key, "response");
  EXPECT_EQ(file.predictions[0].text, "");
  EXPECT_EQ(file.predictions[1].text, "x");
  EXPECT_EQ(read(R"({"id": 1, "response": null, "text": "y"})").text_key, "text") << "a key with a value goes first";
}

TEST_F(PredictionsTest, AFolderHoldsAFileForEachTypeOfQuestion) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("thinkvg-predictions-folder-{}", getpid());
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  EXPECT_THAT([&] { read_predictions(folder); }, ThrowsMessage<std::runtime_error>(HasSubstr("holds no .jsonl")));
  write_file_atomically(folder / "open_ended_question.jsonl", R"({"question_id": 0, "text": "a nodule"})");
  write_file_atomically(folder / "multi_choice_question.json", R"([{"question_id": 0, "text": "A, B"}])");
  const PredictionFile file = read_predictions(folder);
  ASSERT_EQ(file.predictions.size(), 2u);
  EXPECT_EQ(file.predictions[0].id, "multi_choice/0");
  EXPECT_EQ(file.predictions[1].id, "open/0");
  // One of the files alone, by GEMeX's own key.
  write_file_atomically(folder / "single_choice_question.jsonl", R"({"q_id": 3, "type": "disease", "text": "A"})");
  EXPECT_EQ(read_predictions(folder / "single_choice_question.jsonl").predictions.at(0).id, "single_choice/3");
  write_file_atomically(folder / "notes.json", "[]");
  EXPECT_THAT([&] { read_predictions(folder); }, ThrowsMessage<std::runtime_error>(AllOf(
                                                     HasSubstr("notes.json"), HasSubstr("open_ended_question.jsonl"))));
  std::filesystem::remove_all(folder);
}

TEST_F(PredictionsTest, AByteOrderMarkIsPassedOver) {
  for (const char* content : {"{\"id\": 1, \"response\": \"x\"}", "[{\"id\": 1, \"response\": \"x\"}]"}) {
    const PredictionFile file = read(std::string("\xEF\xBB\xBF") + content);
    ASSERT_EQ(file.predictions.size(), 1u) << content;
    EXPECT_EQ(file.predictions[0].text, "x");
  }
}

TEST(ToTaggedResponse, GemexText) {
  const auto got = parsed("<answer> ['A', 'C'] <reason> It < that. <location> [[1, 2, 30, 40], [5, 6, 70.5, 80]]",
                          TextFormat::gemex);
  EXPECT_TRUE(got.complete) << got.problem;
  EXPECT_EQ(got.answer, "['A', 'C']");
  EXPECT_EQ(got.think, "It  that.");
  ASSERT_EQ(got.regions.size(), 2u);
  EXPECT_EQ(got.regions[1].box.x2, 70.5);
  const auto closed =
      parsed("<answer>yes</answer><reason>so</reason><location>[1, 2, 3, 4]</location>", TextFormat::gemex);
  EXPECT_EQ(closed.answer, "yes");
  EXPECT_EQ(closed.regions.size(), 1u);
  EXPECT_FALSE(parsed("yes, it is", TextFormat::gemex).complete) << "no <answer>";
}

TEST(ToTaggedResponse, BoxesInJson) {
  const auto got = parsed(
      "<think>look</think><answer>```json\n[{\"bbox_2d\": [1, 2, 30, 40], \"label\": \"left lung\"}, "
      "{\"box_2d\": [5, 6, 70, 80], \"label\": \"a \\\"b\\\" ]\"}]\n```</answer>",
      TextFormat::box_json);
  EXPECT_TRUE(got.complete) << got.problem;
  EXPECT_EQ(got.think, "look");
  EXPECT_EQ(got.answer, "left lung, a \"b\" ]");
  ASSERT_EQ(got.regions.size(), 2u);
  EXPECT_EQ(got.regions[0].name, "left lung");
  EXPECT_EQ(got.regions[1].box.x1, 6) << "box_2d is y, x, y, x";
  EXPECT_EQ(got.regions[1].box.y2, 70);
  EXPECT_EQ(
      parsed("{\"answer\": \"yes\", \"bbox_2d\": [[1, 2, 3, 4], [2, 3, 4, 5]]}", TextFormat::box_json).regions.size(),
      2u);
  EXPECT_EQ(parsed("[10, 20, 30, 40]", TextFormat::box_json).regions.size(), 1u);
  const auto words = parsed("<think>See [1, 2, 3, 4].</think><answer> yes </answer>", TextFormat::box_json);
  EXPECT_TRUE(words.complete) << words.problem;
  EXPECT_EQ(words.answer, "yes");
  EXPECT_EQ(words.think_regions.size(), 1u);
  EXPECT_TRUE(words.regions.empty());
  const auto none = parsed("<answer>```json\n[]\n```</answer>", TextFormat::box_json);
  EXPECT_TRUE(none.complete) << none.problem;
  EXPECT_EQ(none.answer, "none");
  EXPECT_FALSE(parsed("<answer>[{\"bbox_2d\": [1,</answer>", TextFormat::box_json).complete) << "cut off";
  EXPECT_FALSE(parsed("<answer></answer>", TextFormat::box_json).complete);
  for (const char* broken :
       {"", "{", "[{\"bbox_2d\": [1, 2", "{\"bbox_2d\": \"x\"}", "no box", "{}", "[[[[[[[[[[[[1]]]"})
    EXPECT_FALSE(parsed(broken, TextFormat::box_json).complete) << broken;
}

TEST(ToTaggedResponse, WordsWithBoxes) {
  const auto got = parsed("No acute findings in the left lung [[10, 20, 30, 40]].", TextFormat::plain);
  EXPECT_TRUE(got.complete) << got.problem;
  EXPECT_EQ(got.regions.size(), 1u);
  EXPECT_EQ(got.answer, "No acute findings in the left lung.");
  EXPECT_EQ(
      parsed("Left lung [1, 2, 3, 4] and right lung [[5, 6, 7, 8], [6, 7, 8, 9]] are, [sic], clear", TextFormat::plain)
          .answer,
      "Left lung and right lung are, [sic], clear");
  EXPECT_EQ(parsed("Yes.", TextFormat::plain).answer, "Yes.");
  EXPECT_FALSE(parsed("", TextFormat::plain).complete);
}

TEST(ToTaggedResponse, BoxesOfOtherOrdersBecomeCorners) {
  using grounding::BoxOrder;
  EXPECT_EQ(to_tagged_response("<box>[10, 20, 30, 40]</box> [1, 2]", TextFormat::tags, BoxOrder::xywh),
            "<box>[10, 20, 40, 60]</box> [1, 2]");
  EXPECT_EQ(to_tagged_response("<box>[[1, 2, 3, 4], [5, 6, 7.5, 8]]</box>", TextFormat::tags, BoxOrder::yxyx),
            "<box>[[2, 1, 4, 3], [6, 5, 8, 7.5]]</box>");
  const auto box_of = [](std::string_view text, TextFormat format) {
    const auto got = grounding::parse_response(to_tagged_response(text, format, BoxOrder::xywh),
                                               grounding::BoxFrame::letterbox(336), false);
    return got.regions.empty() ? grounding::Box() : got.regions.front().box;
  };
  EXPECT_EQ(box_of("<answer> A <reason> so <location> [[10, 20, 30, 40]]", TextFormat::gemex).x2, 40);
  EXPECT_EQ(box_of("Yes [10, 20, 30, 40]", TextFormat::plain).y2, 60);
  EXPECT_EQ(box_of("{\"bbox\": [10, 20, 30, 40]}", TextFormat::box_json).y2, 60);
  EXPECT_EQ(box_of("{\"box_2d\": [10, 20, 30, 40]}", TextFormat::box_json).y2, 30) << "box_2d says its order itself";
}

TEST(ToTaggedResponse, HostileTextIsLinear) {
  for (const TextFormat format : {TextFormat::gemex, TextFormat::box_json, TextFormat::plain}) {
    for (const std::string& part :
         {std::string("["), std::string("{"), std::string("<answer>"), std::string("[1,"), std::string("{\"a\":[")}) {
      std::string text;
      while (text.size() < 100000) text += part;
      to_tagged_response(text, format, grounding::BoxOrder::xywh);
    }
  }
}

}  // namespace
}  // namespace thinkvg::eval
