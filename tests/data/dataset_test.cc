#include "thinkvg/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "data/parquet_table.h"
#include "data/rows.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/data/images.h"

namespace thinkvg::data {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DataFiles : public ::testing::Test {
 protected:
  DataFiles() : folder_(fs::path(::testing::TempDir()) / fmt::format("thinkvg_dataset_{}", getpid())) {
    fs::create_directories(folder_);
  }
  ~DataFiles() override { fs::remove_all(folder_); }

  fs::path text_file(const std::string& name, const std::string& content) const {
    write_file_atomically(folder_ / name, content);
    return folder_ / name;
  }

  // Rows: image_path, question, question_type, thinkVG, response.
  fs::path parquet(const std::vector<std::array<std::string, 5>>& rows) const {
    std::vector<std::pair<std::string, TextColumn>> columns;
    for (const char* name : {"image_path", "question", "question_type", "thinkVG", "response"}) {
      columns.emplace_back(name, TextColumn());
    }
    for (const auto& row : rows) {
      for (std::size_t c = 0; c < row.size(); ++c) columns[c].second.append(row[c]);
    }
    write_text_columns(folder_ / "rows.parquet", columns);
    return folder_ / "rows.parquet";
  }

  fs::path folder_;
};

constexpr const char* kImage = "/p10/p10046166/s50051329/abc.jpg";

std::string response(const std::string& answer, const std::string& box) {
  return "<response><answer>" + answer + "</answer><location><ref>right lung</ref><box>" + box +
         "</box></location></response>";
}

template <class Call>
std::string failure_of(Call call) {
  try {
    call();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no failure";
}

TEST_F(DataFiles, ReadsTheReleasesColumns) {
  const auto dataset = open_dataset(parquet({
      {kImage, "Is it clear?", "closed_ended_questions", "thought", response("Yes.", "[1, 2, 30, 40]")},
      {kImage, "Which side? A: left, B: right", "single_choice_questions", "", response("B", "[1.5, 2, 30, 336]")},
      {kImage, "Which ones?\nA: left lung\nB: heart, large\nC: spine", "multi_choice_questions", "",
       response("['A', 'C']", "[[1, 2, 3, 4], [5, 6, 7, 8]]")},
      {"p11/p11000000/s5/x.jpg", "What?", "open_ended_questions", "",
       "<response><answer>A nodule.</answer></response>"},
  }));
  EXPECT_THAT(dataset->bad_rows(), IsEmpty());
  ASSERT_EQ(dataset->size(), 4);
  const Sample closed = dataset->get(0);
  EXPECT_EQ(closed.id, "0");
  EXPECT_EQ(closed.image, "p10/p10046166/s50051329/abc.jpg");
  EXPECT_EQ(closed.patient, "p10046166");
  EXPECT_EQ(closed.type, QuestionType::closed);
  EXPECT_EQ(closed.answer, "yes");
  EXPECT_EQ(closed.think, "thought");
  ASSERT_EQ(closed.regions.size(), 1u);
  EXPECT_EQ(closed.regions[0].name, "right lung");
  EXPECT_EQ(closed.regions[0].box, (grounding::Box{1, 2, 30, 40, grounding::BoxFrame::letterbox(336)}));
  const Sample single = dataset->get(1);
  EXPECT_EQ(single.question, "Which side?");
  EXPECT_THAT(single.choices, ElementsAre("A: left", "B: right"));
  EXPECT_EQ(single.prompt(), "Which side?\nA: left\nB: right");
  EXPECT_EQ(single.answer, "B");
  const Sample multi = dataset->get(2);
  EXPECT_THAT(multi.choices, ElementsAre("A: left lung", "B: heart, large", "C: spine"));
  EXPECT_EQ(multi.answer, "A, C");
  EXPECT_EQ(multi.regions.size(), 2u);
  EXPECT_EQ(dataset->get(3).answer, "A nodule.");
  EXPECT_THROW(dataset->get(4), std::out_of_range);
  EXPECT_THROW(dataset->get(-1), std::out_of_range);
}

TEST_F(DataFiles, BadRowsAreListedWithNumberAndReason) {
  const auto dataset = open_dataset(parquet({
      {kImage, "Clear?", "closed_ended_questions", "", "<response><answer>yes</answer><location><ref>a</ref>"},
      {kImage, "Clear?", "essay_questions", "", response("yes", "[1, 2, 3, 4]")},
      {"", "Clear?", "closed_ended_questions", "", response("yes", "[1, 2, 3, 4]")},
      {kImage, "Clear?", "closed_ended_questions", "", response("yes", "[1, 2, 3, 337]")},
      {kImage, "Clear?", "closed_ended_questions", "", response("yes", "[30, 2, 3, 40]")},
      {kImage, "", "closed_ended_questions", "", response("yes", "[1, 2, 3, 4]")},
      {kImage, "Clear?", "closed_ended_questions", "", response("no", "[1, 2, 3, 4]")},
      {kImage, "Clear?", "closed_ended_questions", "", ""},
      {kImage, "Clear?", "closed_ended_questions", "", response("", "[1, 2, 3, 4]")},
  }));
  ASSERT_EQ(dataset->size(), 1);
  EXPECT_EQ(dataset->get(0).id, "6");
  EXPECT_EQ(dataset->get(0).answer, "no");
  const auto& bad = dataset->bad_rows();
  ASSERT_EQ(bad.size(), 8u);
  const auto expect = [&](std::size_t i, std::int64_t row, const std::string& reason) {
    EXPECT_EQ(bad[i].row, row);
    EXPECT_THAT(bad[i].reason, HasSubstr(reason));
  };
  expect(0, 0, "parsed");
  expect(1, 1, "'essay_questions' is no question type");
  expect(2, 2, "image path is empty");
  expect(3, 3, "outside the frame letterbox-336");
  expect(4, 4, "[30, 2, 3, 40]");
  expect(5, 5, "question is empty");
  expect(6, 7, "parsed");
  EXPECT_EQ(bad[7].row, 8);
}

TEST_F(DataFiles, UnreadableFilesAreNamed) {
  EXPECT_THAT(failure_of([&] { open_dataset(folder_ / "none.parquet"); }), HasSubstr("none.parquet: no such file"));
  const fs::path text = text_file("text.parquet", "no parquet at all");
  EXPECT_THAT(failure_of([&] { open_dataset(text); }), HasSubstr("text.parquet"));
  TextColumn column;
  column.append("x");
  write_text_columns(folder_ / "other.parquet", {{"image_path", column}, {"text", column}});
  EXPECT_THAT(failure_of([&] { open_dataset(folder_ / "other.parquet"); }),
              HasSubstr("its format is not known. It is parquet with the fields image_path, text"));
  EXPECT_THAT(failure_of([&] { open_dataset(folder_ / "other.parquet", {.format = "thinkvg"}); }),
              HasSubstr("lacks question, question_type, response and has image_path, text"));
  std::string cut = read_file(folder_ / "other.parquet");
  cut.resize(cut.size() / 2);
  EXPECT_THAT(failure_of([&] { open_dataset(text_file("cut.parquet", cut)); }), HasSubstr("cut.parquet"));
  EXPECT_THAT(failure_of([&] { open_dataset(text_file("a.csv", "x")); }), HasSubstr("its format is not known"));
  fs::create_directories(folder_ / "empty");
  EXPECT_THAT(failure_of([&] { open_dataset(folder_ / "empty"); }), HasSubstr("multi_choice_question.jsonl"));
}

TEST_F(DataFiles, ReadsGemexRows) {
  // The last line has no newline, and still counts.
  const auto dataset = open_dataset(text_file(
      "multi_choice_question.jsonl",
      R"({"question": "Which?", "choices": ["A: left", "B: right", "C: none"], "type": "location", "answer": ["C", "A"], )"
      R"("reason": "because", "visual_regions": ["right lung", "left lung"], "visual_locations": [[1, 2, 30, 40], [5.5, 6, 70, 224]], )"
      R"("image_path": "p10/p10000032/s1/x.jpg", "ori_report": "report", "q_id": 7, "row_id": 70})"
      "\n\n"
      R"({"question": "Which?", "choices": ["A: left", "B: right"], "answer": "['B']", "image_path": "p10/p10000032/s1/x.jpg", "q_id": "8"})"));
  EXPECT_THAT(dataset->bad_rows(), IsEmpty());
  ASSERT_EQ(dataset->size(), 2);
  const Sample sample = dataset->get(0);
  EXPECT_EQ(sample.id, "multi_choice/7");
  EXPECT_EQ(sample.type, QuestionType::multi_choice);
  EXPECT_EQ(sample.content_type, "location");
  EXPECT_EQ(sample.answer, "A, C");
  EXPECT_EQ(sample.think, "because");
  EXPECT_EQ(sample.patient, "p10000032");
  EXPECT_EQ(sample.frame, grounding::BoxFrame::letterbox(224));
  ASSERT_EQ(sample.regions.size(), 2u);
  EXPECT_EQ(sample.regions[1].name, "left lung");
  EXPECT_EQ(sample.regions[1].box.x1, 5.5);
  EXPECT_EQ(dataset->get(1).id, "multi_choice/8");
  EXPECT_EQ(dataset->get(1).answer, "B");
}

TEST_F(DataFiles, GemexTypeWithoutAFileName) {
  const std::string image = R"("image_path": "p10/p10000032/s1/x.jpg")";
  const auto dataset = open_dataset(text_file(
      "rows.jsonl", R"({"question": "q", "choices": ["A: l", "B: r"], "answer": ["A"], "q_id": 0, )" + image + "}\n" +
                        R"({"question": "q", "choices": ["A: l", "B: r"], "answer": "A", "q_id": 0, )" + image + "}\n" +
                        R"({"question": "q", "answer": "No.", "q_id": 0, )" + image + "}\n" +
                        R"({"question": "q", "answer": "a normal heart", "q_id": 0, )" + image + "}\n" +
                        R"({"question": "q", "answer": "again", "q_id": 0, )" + image + "}\n" +
                        R"({"question": "q", "answer": "out", "q_id": 1, "visual_locations": [[0, 0, 300, 10]], )" +
                        image + "}\n" + "{broken\n"));
  ASSERT_EQ(dataset->size(), 4);
  EXPECT_EQ(dataset->get(0).id, "multi_choice/0");
  EXPECT_EQ(dataset->get(1).id, "single_choice/0");
  EXPECT_EQ(dataset->get(2).id, "closed/0");
  EXPECT_EQ(dataset->get(2).answer, "no");
  EXPECT_EQ(dataset->get(3).id, "open/0");
  ASSERT_EQ(dataset->bad_rows().size(), 3u);
  EXPECT_EQ(dataset->bad_rows()[0].row, 4);
  EXPECT_THAT(dataset->bad_rows()[0].reason, HasSubstr("open/0 came before"));
  EXPECT_THAT(dataset->bad_rows()[1].reason, HasSubstr("outside the frame letterbox-224"));
  EXPECT_THAT(dataset->bad_rows()[2].reason, HasSubstr("JSON"));
}

TEST_F(DataFiles, ReadsGemexTrainingLists) {
  const auto dataset = open_dataset(text_file("train.json", R"([
    {"row_id": 12, "image": "files/p10/p10000032/s1/x.jpg", "q_type": "single_choice_questions", "type_prompt": "",
     "conversations": [
       {"from": "human", "value": "<image>\nWhich side is it? <choices>: [A: left, B: right]"},
       {"from": "gpt", "value": "<answer> B <reason> it is dense <location> [[1, 2, 30, 40], [5, 6, 7, 8]]"}]},
    {"row_id": 13, "image": "p10/p10000032/s1/x.jpg", "q_type": "closed_ended_questions",
     "conversations": [{"from": "human", "value": "<image>\nq"},
                       {"from": "gpt", "value": "<answer> yes <reason> r <location> nowhere"}]}])"));
  ASSERT_EQ(dataset->size(), 1);
  const Sample sample = dataset->get(0);
  EXPECT_EQ(sample.id, "12");
  EXPECT_EQ(sample.image, "p10/p10000032/s1/x.jpg");
  EXPECT_EQ(sample.question, "Which side is it?");
  EXPECT_THAT(sample.choices, ElementsAre("A: left", "B: right"));
  EXPECT_EQ(sample.answer, "B");
  EXPECT_EQ(sample.think, "it is dense");
  EXPECT_EQ(sample.regions.size(), 2u);
  ASSERT_EQ(dataset->bad_rows().size(), 1u);
  EXPECT_THAT(dataset->bad_rows()[0].reason, HasSubstr("nowhere"));
}

TEST(SplitChoices, OnlyWhenItIsSure) {
  const auto split = [](const char* text) { return split_choices(text); };
  EXPECT_THAT(split("Which? A) left lung B) right lung").choices, ElementsAre("A: left lung", "B: right lung"));
  EXPECT_THAT(split("Which? (A) left; (B) right").choices, ElementsAre("A: left", "B: right"));
  EXPECT_EQ(split("Which? (A) left; (B) right").question, "Which?");
  EXPECT_THAT(split("Which of them? Options: A: x, y\nB: z").choices, ElementsAre("A: x, y", "B: z"));
  EXPECT_EQ(split("Which of them? Options: A: x, y\nB: z").question, "Which of them?");
  EXPECT_THAT(split("Which? A: vitamin A: low, B: high").choices, IsEmpty());
  for (const char* text :
       {"Is hepatitis A: likely?", "Which? B: x, C: y", "Which? A: x", "A: x, B: y", "Why? A: , B: y"}) {
    EXPECT_THAT(split(text).choices, IsEmpty()) << text;
    EXPECT_EQ(split(text).question, text);
  }
}

TEST(Rows, PatientsAndPaths) {
  EXPECT_EQ(patient_of("p10/p10000032/s50414267/x.jpg"), "p10000032");
  EXPECT_EQ(patient_of("flat/x.png"), "");
  EXPECT_EQ(patient_of("p1234567/x.png"), "");
  EXPECT_EQ(relative_image("/files/p10/x.jpg"), "p10/x.jpg");
  EXPECT_EQ(relative_image("//p10/x.jpg"), "p10/x.jpg");
  EXPECT_EQ(relative_image("./files/p10/x.jpg"), "p10/x.jpg");
}

TEST(QuestionTypes, NamesGoRoundAndSpellingsAreTaken) {
  for (const QuestionType type :
       {QuestionType::open, QuestionType::closed, QuestionType::single_choice, QuestionType::multi_choice}) {
    EXPECT_EQ(parse_question_type(question_type_name(type)), type);
    EXPECT_EQ(parse_question_type(question_type_name(type) + "_questions"), type);
  }
  EXPECT_EQ(parse_question_type("open_ended_question"), QuestionType::open);
  EXPECT_EQ(parse_question_type("Closed-ended questions"), QuestionType::closed);
  EXPECT_THROW(parse_question_type("choice"), std::invalid_argument);
}

// 60 patients with three questions each, and six pictures of unknown patients.
class ManyPatients final : public Dataset {
 public:
  std::int64_t size() const override { return 186; }
  Sample get(std::int64_t index) const override {
    Sample sample;
    sample.id = std::to_string(index);
    sample.patient = index < 180 ? fmt::format("p1{:07}", index / 3) : "";
    sample.image = index < 180 ? sample.patient + "/x.jpg" : fmt::format("{}.jpg", index);
    return sample;
  }
  const std::vector<BadRow>& bad_rows() const override { return bad_; }

 private:
  std::vector<BadRow> bad_;
};

std::set<std::string> ids(const Dataset& dataset) {
  std::set<std::string> all;
  for (std::int64_t i = 0; i < dataset.size(); ++i) all.insert(dataset.get(i).id);
  return all;
}

TEST(PatientFraction, IsNestedAndSplitsByPatient) {
  const auto source = std::make_shared<ManyPatients>();
  const auto part = [&](double fraction, bool complement = false) {
    return ids(*patient_fraction(source, fraction, 5, complement));
  };
  const auto eighth = part(0.125), half = part(0.5);
  EXPECT_TRUE(std::includes(half.begin(), half.end(), eighth.begin(), eighth.end()));
  EXPECT_GT(half.size(), 80u);
  EXPECT_LT(half.size(), 105u);
  auto all = part(0.125, true);
  EXPECT_EQ(all.size() + eighth.size(), 186u);
  all.insert(eighth.begin(), eighth.end());
  EXPECT_EQ(all, ids(*source));
  std::map<int, int> per_patient;
  for (const std::string& id : eighth) {
    if (std::stoi(id) < 180) ++per_patient[std::stoi(id) / 3];
  }
  for (const auto& [patient, count] : per_patient) EXPECT_EQ(count, 3);
  EXPECT_TRUE(part(0).empty());
  EXPECT_EQ(part(1).size(), 186u);
  EXPECT_NE(ids(*patient_fraction(source, 0.125, 6)), eighth);
  EXPECT_THROW(patient_fraction(source, 1.5, 5), std::invalid_argument);
}

TEST(Select, TakesRowsInTheirOrder) {
  const auto source = std::make_shared<ManyPatients>();
  const auto rows = select(source, {7, 3, 3});
  ASSERT_EQ(rows->size(), 3);
  EXPECT_EQ(rows->get(0).id, "7");
  EXPECT_EQ(rows->get(2).id, "3");
  EXPECT_THROW(rows->get(3), std::out_of_range);
  EXPECT_THROW(select(source, {186}), std::invalid_argument);
}

TEST_F(DataFiles, FindsPicturesInTheUsualPlaces) {
  fs::create_directories(folder_ / "files/p10/p10000001/s1");
  fs::create_directories(folder_ / "p10/p10000002/s1");
  fs::create_directories(folder_ / "flat");
  text_file("files/p10/p10000001/s1/one.jpg", "x");
  text_file("p10/p10000002/s1/two.png", "x");
  text_file("flat/50414267-0002aa80-4e384014.png", "x");
  const ImageFinder finder(folder_.string());
  EXPECT_EQ(finder.find("p10/p10000001/s1/one.jpg"), folder_ / "files/p10/p10000001/s1/one.jpg");
  EXPECT_EQ(finder.find("/files/p10/p10000001/s1/one.jpg"), folder_ / "files/p10/p10000001/s1/one.jpg");
  EXPECT_EQ(finder.find("p10/p10000002/s1/two.jpg"), folder_ / "p10/p10000002/s1/two.png");
  EXPECT_EQ(finder.find("p10/p10000003/s9/50414267-0002aa80-4e384014.jpg"),
            folder_ / "flat/50414267-0002aa80-4e384014.png");
  EXPECT_TRUE(finder.find("p10/p10000003/s9/four.jpg").empty());
  EXPECT_TRUE(finder.find("").empty());
  Sample sample;
  sample.id = "12";
  sample.image = "p10/p10000003/s9/four.jpg";
  EXPECT_THAT(failure_of([&] { finder.require(sample); }),
              ::testing::AllOf(HasSubstr("sample 12"), HasSubstr("four.jpg"), HasSubstr("files")));
  EXPECT_THAT(failure_of([&] { ImageFinder((folder_ / "nowhere").string()); }), HasSubstr("nowhere"));
}

}  // namespace
}  // namespace thinkvg::data
