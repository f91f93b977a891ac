#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

namespace thinkvg {
namespace {

using ::testing::HasSubstr;

struct ProgramResult {
  int exit_code = 0;
  std::string out, err;
};

// The built program on a small GEMeX folder: two questions of each type about three pictures, boxes in the 224 frame.
class ScoreCommandEndToEnd : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("thinkvg_score_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_ / "gemex");
    write_questions("open_ended_question.jsonl", Json("The heart is large"), {});
    write_questions("closed_ended_question.jsonl", Json("yes"), {});
    write_questions("single_choice_question.jsonl", Json("B"), {"A: left lung", "B: right lung"});
    write_questions("multi_choice_question.jsonl", Json::array({"A", "C"}), {"A: opacity", "B: nodule", "C: effusion"});
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write_questions(const std::string& file, const Json& answer, const std::vector<std::string>& choices) {
    std::ofstream out(folder_ / "gemex" / file);
    for (int i = 0; i < 2; ++i) {
      Json row;
      row["question"] = "What is seen?";
      if (!choices.empty()) row["choices"] = choices;
      row["type"] = "abnormality";
      row["answer"] = answer;
      row["reason"] = "because";
      row["visual_regions"] = {"left lung"};
      row["visual_locations"] = {{20, 40, 100, 200}};
      row["image_path"] = "p10/p1000000" + std::to_string(i) + "/s1/a" + std::to_string(i) + ".jpg";
      row["ori_report"] = "report";
      row["q_id"] = i;
      row["row_id"] = i;
      out << row.dump() << (i == 0 ? "\n" : "");
    }
  }

  std::string write_predictions(const std::vector<Json>& rows) {
    const auto file = folder_ / "predictions.jsonl";
    std::ofstream out(file);
    for (std::size_t i = 0; i < rows.size(); ++i) out << rows[i].dump() << (i + 1 < rows.size() ? "\n" : "");
    return file.string();
  }

  static std::vector<Json> right_answers(const std::string& box) {
    std::vector<Json> rows;
    for (const auto& [type, answer] :
         std::vector<std::pair<std::string, std::string>>{{"open", "The heart is large"},
                                                          {"closed", "Yes."},
                                                          {"single_choice", "B"},
                                                          {"multi_choice", "['A', 'C']"}}) {
      for (int i = 0; i < 2; ++i) {
        rows.push_back(
            {{"id", type + "/" + std::to_string(i)},
             {"response", "<think>so</think><response><answer>" + answer +
                              "</answer><location><ref>left lung</ref><box>" + box + "</box></location></response>"}});
      }
    }
    return rows;
  }

  ProgramResult run(const std::string& flags) {
    const std::string out = (folder_ / "stdout").string(), err = (folder_ / "stderr").string();
    const std::string command = std::string(THINKVG_PROGRAM) + " score " + flags + " >" + out + " 2>" + err;
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(out), read_file(err)};
  }
  std::string data() const { return " --data " + (folder_ / "gemex").string() + " "; }

  std::filesystem::path folder_;
};

TEST_F(ScoreCommandEndToEnd, ReferencesScoreOne) {
  const auto predictions = write_predictions(right_answers("[20, 40, 100, 200]"));
  const ProgramResult got = run("--predictions " + predictions + data() + "--json");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  const Json json = Json::parse(got.out);
  EXPECT_EQ(json["num_questions"]["overall"], 8);
  EXPECT_EQ(json["num_questions"]["by_type"]["multi_choice"], 2);
  for (const char* name : {"a_score", "v_score", "parse_rate"}) EXPECT_EQ(json[name]["overall"], 1.0) << name;
  EXPECT_EQ(json["a_score"]["n"]["overall"], 6);
  EXPECT_EQ(json["num_missing"], 0);
  EXPECT_EQ(json["rules"]["boxes"], "hungarian");
}

TEST_F(ScoreCommandEndToEnd, LetterboxFramesNeedNoPictures) {
  const auto predictions = write_predictions(right_answers("[30, 60, 150, 300]"));
  const ProgramResult right = run("--predictions " + predictions + data() + "--json --frame letterbox-336");
  ASSERT_EQ(right.exit_code, 0) << right.err;
  EXPECT_NEAR(Json::parse(right.out)["v_score"]["overall"].get<double>(), 1, 1e-9);
  const ProgramResult wrong = run("--predictions " + predictions + data() + "--json");
  EXPECT_LT(Json::parse(wrong.out)["v_score"]["overall"].get<double>(), 0.6);
  const ProgramResult without = run("--predictions " + predictions + data() + "--json --frame original");
  EXPECT_EQ(without.exit_code, 2);
  EXPECT_THAT(without.err, HasSubstr("--images"));
}

TEST_F(ScoreCommandEndToEnd, AFrameThatFitsFarBetterIsSaid) {
  const auto predictions = write_predictions(right_answers("[89, 179, 446, 893]"));  // in thousandths of the square
  const ProgramResult got = run("--predictions " + predictions + data() + "--json");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  EXPECT_THAT(got.err, HasSubstr("--frame thousand"));
  const Json json = Json::parse(got.out);
  EXPECT_EQ(json["boxes_fit_better_as"]["frame"], "thousand");
  EXPECT_LT(json["v_score"]["overall"].get<double>(), 0.2) << "said, not taken";
  const auto sized = write_predictions(right_answers("[20, 40, 80, 160]"));
  const ProgramResult order = run("--predictions " + sized + data() + "--json");
  EXPECT_THAT(order.err, HasSubstr("--box_order xywh"));
  const ProgramResult right = run("--predictions " + sized + data() + "--json --box_order xywh");
  ASSERT_EQ(right.exit_code, 0) << right.err;
  EXPECT_EQ(Json::parse(right.out)["v_score"]["overall"], 1.0);
  EXPECT_EQ(Json::parse(right.out)["rules"]["box_order"], "xywh");
  EXPECT_FALSE(Json::parse(right.out).contains("boxes_fit_better_as"));
  EXPECT_EQ(run("--predictions " + sized + data() + "--box_order xyhw").exit_code, 2);
}

TEST_F(ScoreCommandEndToEnd, OtherFramesReadSizesFromHeaders) {
  // Headers are enough: two pictures of 448 x 224 pixels without any pixel behind.
  const std::string header("\xFF\xD8\xFF\xC0\0\x11\x08\0\xE0\x01\xC0\x03\1\1\0\1\1\0\1\1\0", 21);
  for (int i = 0; i < 2; ++i) {
    const auto file =
        folder_ / "files" / "p10" / ("p1000000" + std::to_string(i)) / "s1" / ("a" + std::to_string(i) + ".jpg");
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << header;
  }
  // 448 x 224 fills rows 56 to 168 of the 224 letterbox at half size: x * 2, (y - 56) * 2.
  const auto predictions = write_predictions(right_answers("[40, -32, 200, 288]"));
  const ProgramResult got =
      run("--predictions " + predictions + data() + "--json --frame original --images " + (folder_ / "files").string());
  ASSERT_EQ(got.exit_code, 0) << got.err;
  EXPECT_NEAR(Json::parse(got.out)["v_score"]["overall"].get<double>(), 1, 1e-9);
  std::filesystem::remove_all(folder_ / "files" / "p10" / "p10000001");
  const ProgramResult missing =
      run("--predictions " + predictions + data() + "--json --frame original --images " + (folder_ / "files").string());
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_THAT(missing.err, HasSubstr("a1.jpg"));
}

TEST_F(ScoreCommandEndToEnd, MissingPredictionsCountAsWrongAndAreSaid) {
  auto rows = right_answers("[20, 40, 100, 200]");
  rows.resize(4);
  const auto predictions = write_predictions(rows);
  const ProgramResult got = run("--predictions " + predictions + data() + "--json");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  const Json json = Json::parse(got.out);
  EXPECT_EQ(json["num_missing"], 4);
  EXPECT_EQ(json["v_score"]["overall"], 0.5);
  EXPECT_EQ(json["parse_rate"]["overall"], 0.5);
  EXPECT_THAT(got.err, HasSubstr("4 of 8 questions have no prediction"));
}

TEST_F(ScoreCommandEndToEnd, BadPredictionFilesAreClearErrors) {
  const auto good = right_answers("[20, 40, 100, 200]");
  const auto expect_failure = [&](std::vector<Json> rows, const std::string& message) {
    const ProgramResult got = run("--predictions " + write_predictions(rows) + data() + "--json");
    EXPECT_EQ(got.exit_code, 1) << message;
    EXPECT_THAT(got.err, HasSubstr(message));
    EXPECT_EQ(got.out, "");
  };
  expect_failure({good[0], {{"id", "closed/77"}, {"response", "x"}}}, "closed/77");
  expect_failure({good[0], good[0]}, "line 2: id 'open/0' came before");
  expect_failure({good[0], {{"id", "open/1"}}}, "line 2: \"response\" of id 'open/1' must be text");
  expect_failure({good[0], {{"response", "x"}}}, "line 2: \"id\" is missing");
  expect_failure({good[0], Json("text")}, "line 2: expected an object");
  expect_failure({}, "holds no predictions");
  const ProgramResult none = run("--predictions /nowhere/p.jsonl" + data());
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_THAT(none.err, HasSubstr("/nowhere/p.jsonl"));
}

TEST_F(ScoreCommandEndToEnd, WrongUseExitsWithTwo) {
  const std::string predictions = write_predictions(right_answers("[20, 40, 100, 200]"));
  for (const auto& [flags, message] : std::vector<std::pair<std::string, std::string>>{
           {"", "--predictions"},
           {"--predictions " + predictions, "--data"},
           {"--predictions " + predictions + data() + "--frame pixels", "letterbox-N"},
           {"--predictions " + predictions + data() + "--rule greedy", "hungarian"},
           {"--predictions " + predictions + data() + "--framee unit", "did you mean --frame?"}}) {
    const ProgramResult got = run(flags);
    EXPECT_EQ(got.exit_code, 2) << flags;
    EXPECT_THAT(got.err, HasSubstr(message));
    EXPECT_EQ(got.out, "");
  }
  EXPECT_EQ(run("--help").exit_code, 0);
}

TEST_F(ScoreCommandEndToEnd, TableAndResultFiles) {
  const auto predictions = write_predictions(right_answers("[20, 40, 100, 200]"));
  const auto out = folder_ / "result";
  const ProgramResult got = run("--predictions " + predictions + data() + "--out " + out.string());
  ASSERT_EQ(got.exit_code, 0) << got.err;
  for (const char* text : {"A-score", "V-score", "multi_choice", "1.000 [1.000, 1.000]", "subset: all 8 questions",
                           "prompt: not said", "judge: none", "thinkvg "})
    EXPECT_THAT(got.out, HasSubstr(text));
  const Json metrics = read_json_file(out / "metrics.json");
  EXPECT_EQ(metrics["a_score"]["overall"], 1.0);
  EXPECT_EQ(metrics["rules"]["format"], "tags");
  EXPECT_EQ(metrics["provenance"]["subset"], "all 8 questions");
  EXPECT_EQ(metrics["provenance"]["model_sha256"], sha256_file(predictions));
  EXPECT_EQ(metrics["provenance"]["data_sha256"].get<std::string>().size(), 64u);
  EXPECT_EQ(metrics["baselines"]["majority_answer"]["a_score"]["overall"], 1.0) << "every type has one answer";
  const std::string lines = read_file(out / "predictions.jsonl");
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 8);
  // What it wrote can be scored again, and says its own frame.
  const ProgramResult again = run("--json --predictions " + (out / "predictions.jsonl").string() + data());
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_EQ(Json::parse(again.out)["v_score"], metrics["v_score"]);
}

TEST_F(ScoreCommandEndToEnd, FilesOfOtherSystems) {
  const std::vector<std::pair<std::string, std::string>> answers = {
      {"open", "The heart is large"}, {"closed", "yes"}, {"single_choice", "B"}, {"multi_choice", "A, C"}};
  std::vector<Json> llava, gemex, boxes;
  for (const auto& [type, answer] : answers) {
    for (int i = 0; i < 2; ++i) {
      const std::string id = type + "/" + std::to_string(i);
      llava.push_back(
          {{"question_id", id}, {"prompt", "?"}, {"text", answer + " [20, 40, 100, 200]"}, {"model_id", "m"}});
      gemex.push_back({{"q_id", i},
                       {"question_type", type},
                       {"output", "<answer> " + answer + " <reason> it is seen <location> [[20, 40, 100, 200]]"}});
      boxes.push_back({{"id", id},
                       {"model_output",
                        "<think>so</think><answer>```json\n[{\"bbox_2d\": [20, 40, 100, 200], \"label\": "
                        "\"left lung\", \"answer\": \"" +
                            answer + "\"}]\n```</answer>"}});
    }
  }
  for (const auto& [rows, format] : std::vector<std::pair<std::vector<Json>, std::string>>{
           {llava, "plain"}, {gemex, "gemex"}, {boxes, "box_json"}}) {
    const ProgramResult got = run("--json --predictions " + write_predictions(rows) + data());
    ASSERT_EQ(got.exit_code, 0) << got.err;
    const Json json = Json::parse(got.out);
    EXPECT_EQ(json["rules"]["format"], format);
    EXPECT_EQ(json["a_score"]["overall"], 1.0) << format;
    EXPECT_EQ(json["v_score"]["overall"], 1.0) << format;
    EXPECT_EQ(json["token_f1"]["overall"], 1.0) << format;
    EXPECT_EQ(json["parse_rate"]["overall"], 1.0) << format;
  }
  // Read as another format, nothing parses.
  const ProgramResult wrong = run("--json --format tags --predictions " + write_predictions(llava) + data());
  EXPECT_EQ(Json::parse(wrong.out)["parse_rate_strict"]["overall"], 0.0);
}

// A judge that is asked now: what it costs is said first, what it cannot grade is left out, and grades that are there
// are not asked for again.
TEST_F(ScoreCommandEndToEnd, AJudgeIsAskedForWhatItHasNotGraded) {
  const std::string predictions = write_predictions(right_answers("[20, 40, 100, 200]"));
  const std::filesystem::path out = folder_ / "out";
  const std::string flags = "--json --predictions " + predictions + data() + "--out " + out.string() +
                            " --judge.url http://127.0.0.1:1/v1 --judge.model m --judge.max_retries 0 --judge.prompt " +
                            THINKVG_SOURCE_DIR + "/configs/judge/ar_score.yaml --judge.price_in 1000 ";
  const ProgramResult down = run(flags);
  ASSERT_EQ(down.exit_code, 0) << down.err;
  EXPECT_EQ(Json::parse(down.out)["num_judged"], 0);
  EXPECT_FALSE(Json::parse(down.out).contains("ar_score"));
  const std::size_t told = down.err.find(": 8 of 8 answers to grade, ");
  ASSERT_NE(told, std::string::npos) << down.err;
  EXPECT_THAT(down.err, HasSubstr(", price at most "));
  EXPECT_THAT(down.err, HasSubstr("8 of 8 answers have no grade"));
  const std::size_t name = down.err.rfind("judge m, prompt", told) + 6;
  const std::string judge = down.err.substr(name, told - name);

  std::string lines;
  for (const char* id : {"open/0", "open/1", "closed/0", "closed/1", "single_choice/0", "single_choice/1",
                         "multi_choice/0", "multi_choice/1"})
    lines += Json({{"id", id}, {"model", 6}, {"reference", 8}, {"judge", judge}}).dump() + "\n";
  write_file_atomically(out / "judge.jsonl", lines);
  const ProgramResult graded = run(flags);
  ASSERT_EQ(graded.exit_code, 0) << graded.err;
  EXPECT_THAT(graded.err, HasSubstr(": 0 of 8 answers to grade, 0 requests"));
  const Json json = Json::parse(graded.out);
  EXPECT_EQ(json["num_judged"], 8);
  EXPECT_EQ(json["ar_score"]["overall"], 0.75);
  EXPECT_EQ(json["provenance"]["judge"], judge);

  EXPECT_EQ(run(flags + "--judge_scores " + (out / "judge.jsonl").string()).exit_code, 2);
  EXPECT_EQ(run(flags + "--judge.on_failure fallback").exit_code, 2);
  const ProgramResult stopped = run(flags + "--judge.swap false --judge.on_failure stop");
  EXPECT_EQ(stopped.exit_code, 1);
  EXPECT_THAT(stopped.err, HasSubstr("holds grades of 'm, prompt"));
}

TEST_F(ScoreCommandEndToEnd, AJudgesGradesGiveTheArScore) {
  const auto predictions = write_predictions(right_answers("[20, 40, 100, 200]"));
  std::ofstream(folder_ / "judge.jsonl") << R"({"id": "open/0", "model": 8, "reference": 10, "judge": "j-70b"})"
                                         << "\n"
                                         << R"({"id": "open/1", "model": 2, "reference": 4, "judge": "j-70b"})";
  const ProgramResult got =
      run("--json --predictions " + predictions + data() + "--judge_scores " + (folder_ / "judge.jsonl").string());
  ASSERT_EQ(got.exit_code, 0) << got.err;
  const Json json = Json::parse(got.out);
  EXPECT_NEAR(json["ar_score"]["overall"].get<double>(), (0.8 + 0.5) / 2, 1e-12);
  EXPECT_NEAR(json["ar_score_ratio_of_means"]["overall"].get<double>(), 10.0 / 14, 1e-12);
  EXPECT_EQ(json["provenance"]["judge"], "j-70b");
  EXPECT_EQ(json["num_judged"], 2);
}

}  // namespace
}  // namespace thinkvg
