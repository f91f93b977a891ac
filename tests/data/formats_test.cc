#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include <cstdlib>
#include <filesystem>
#include <thread>

#include "data/packed_rows.h"
#include "data/parquet_table.h"
#include "data/row_file.h"
#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/dataset.h"
#include "thinkvg/data/jsonl.h"

namespace thinkvg::data {
namespace {

namespace fs = std::filesystem;
using grounding::Box;
using grounding::BoxFrame;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const fs::path kExcerpts = fs::path(THINKVG_TEST_DATA) / "formats";

class Formats : public ::testing::Test {
 protected:
  fs::path file(const std::string& name, const std::string& content) const {
    write_file_atomically(folder_ / name, content);
    return folder_ / name;
  }
  std::unique_ptr<Dataset> open(const std::string& content, const OpenOptions& options = {}) const {
    return open_dataset(file("rows", content), options);
  }
  test::TemporaryFolder folder_;
};

std::string reasons(const Dataset& dataset) {
  std::string text;
  for (const BadRow& row : dataset.bad_rows()) text += fmt::format("{}: {}\n", row.row, row.reason);
  return text;
}

template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

// ---- rows of files ----

TEST_F(Formats, CsvFollowsRfc4180) {
  const fs::path csv = file("a.csv",
                            "\xEF\xBB\xBF"
                            "a,\"b\"\"c\",d,\r\n1,\"x, \"\"y\"\"\r\nz\",3\r\n\r\n,,\n1,2\n4,5,6,,\n7,8,\"9");
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> problems;
  for_each_csv_row(csv, {"d", "b\"c"}, [&](const RawRow& row) {
    rows.emplace_back(row.cells.begin(), row.cells.end());
    problems.push_back(row.problem);
  });
  EXPECT_THAT(rows, ElementsAre(ElementsAre("3", "x, \"y\"\r\nz"), ElementsAre("", ""), ElementsAre("", "2"),
                                ElementsAre("6", "5"), ElementsAre("9", "8")));
  EXPECT_THAT(problems, ElementsAre("", "", "2 cells for 3 columns", "", HasSubstr("not closed")));
  EXPECT_THAT(error_of([&] { for_each_csv_row(csv, {"e"}, [](const RawRow&) {}); }), HasSubstr("column 'e'"));
}

std::vector<std::string> json_rows(const fs::path& file, FileKind kind) {
  std::vector<std::string> rows;
  for_each_json_row(file, kind, [&](const RawRow& row) {
    rows.push_back(row.problem.empty() ? std::string(row.cells[0]) : "!" + row.problem.substr(0, 13));
  });
  return rows;
}

TEST_F(Formats, JsonRowsAreCutWithoutBeingParsed) {
  EXPECT_THAT(json_rows(file("l", "\n{\"a\": 1}\r\n \n{\"b\": 2}"), FileKind::json_lines),
              ElementsAre("{\"a\": 1}\r", "{\"b\": 2}"));
  EXPECT_THAT(json_rows(file("m", "[{\"a\": [1, \"],\\\"\"]},{\"b\": {}} , 3,]"), FileKind::json_list),
              ElementsAre("{\"a\": [1, \"],\\\"\"]}", "{\"b\": {}} ", " 3"));
  EXPECT_THAT(json_rows(file("n", "[]"), FileKind::json_list), IsEmpty());
  EXPECT_THAT(json_rows(file("o", "[1,,{\"a\": \"cut"), FileKind::json_list),
              ElementsAre("1", "!two commas wi", "!the file ends"));
  // Longer than the pieces in which a file is read.
  std::string list = "[";
  std::vector<std::string> expected;
  for (int i = 0; i < 3000; ++i) {
    expected.push_back("{\"t\": \"" + std::string(static_cast<std::size_t>(i % 1500), 'x') + ",]\"}");
    list += (i == 0 ? "" : ",") + expected.back();
  }
  EXPECT_EQ(json_rows(file("p", list + "]"), FileKind::json_list), expected);
  std::string lines;
  for (const std::string& row : expected) lines += row + "\n";
  lines.pop_back();
  EXPECT_EQ(json_rows(file("q", lines), FileKind::json_lines), expected);
}

TEST_F(Formats, PackedRowsComeBackFromAnyThread) {
  PackedRows rows;
  RandomStream random({11});
  std::vector<std::vector<std::string>> expected;
  for (int i = 0; i < 5000; ++i) {
    std::vector<std::string> cells(3);
    for (std::string& cell : cells) cell.assign(random.below(200), static_cast<char>('a' + i % 26));
    rows.append({cells.begin(), cells.end()});
    expected.push_back(cells);
  }
  rows.append({std::string_view("last")});
  rows.finish();
  EXPECT_EQ(rows.size(), 5001);
  EXPECT_THAT(rows.at(5000), ElementsAre("last"));
  EXPECT_LT(rows.packed_bytes(), 1'000'000);
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      RandomStream places({12, t});
      for (int i = 0; i < 3000; ++i) {
        const auto row = static_cast<std::int64_t>(places.below(5000));
        const auto cells = rows.at(row);
        wrong[t] += std::vector<std::string>(cells.begin(), cells.end()) != expected[static_cast<std::size_t>(row)];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

TEST_F(Formats, UnknownContentSaysWhatItIsAndWhatIsKnown) {
  EXPECT_THAT(
      error_of([&] { open("a,b\n1,2\n"); }),
      ::testing::AllOf(HasSubstr("its format is not known"), HasSubstr("CSV"), HasSubstr("a, b"), HasSubstr("vindr")));
  EXPECT_THAT(error_of([&] { open(""); }), HasSubstr("the file is empty"));
  EXPECT_THAT(error_of([&] { open("{\"a\": 1}\n"); }), HasSubstr("JSON lines with the fields a"));
  EXPECT_THAT(error_of([&] { open("{\"a\":\n 1}\n"); }), HasSubstr("rows are read one a line"));
  EXPECT_THAT(error_of([&] { open(std::string("\xFF\xFE{\0\"\0", 6)); }), HasSubstr("the text is UTF-16"));
  EXPECT_THAT(error_of([&] { open(std::string("PK\3\4\0\0", 6)); }), HasSubstr("neither parquet nor text"));
  EXPECT_THAT(error_of([&] { open("x", {.format = "vindir"}); }), HasSubstr("did you mean 'vindr'"));
  EXPECT_THAT(error_of([&] { open("a,b\n", {.format = "vindr"}); }), HasSubstr("lacks image_id"));
  EXPECT_THAT(error_of([&] { open("x", {.frame = "square"}); }), HasSubstr("unknown box frame 'square'"));
  std::string broken = read_file(kExcerpts / "nih.csv.gz");
  broken.resize(broken.size() / 2);
  EXPECT_THAT(error_of([&] { open(broken); }), HasSubstr("rows"));
}

// Every place in a JSON value, containers before what they hold.
void collect_places(const Json& value, const Json::json_pointer& at, std::vector<Json::json_pointer>& places) {
  places.push_back(at);
  if (value.is_object()) {
    for (const auto& item : value.items()) collect_places(item.value(), at / item.key(), places);
  } else if (value.is_array()) {
    for (std::size_t i = 0; i < value.size(); ++i) collect_places(value[i], at / i, places);
  }
}

// A value of another kind, anywhere, makes its row a bad one and no more.
TEST_F(Formats, ValuesOfAnyKindAreNeverFatal) {
  const std::vector<std::pair<std::string, std::string>> rows = {
      {"jsonl",
       R"({"id": "q", "images": ["a.jpg", "b.jpg"], "question": "q?", "type": "single", "choices": ["A: x", "B: y"], "think": "t", "answer": ["A"], "boxes": [{"name": "n", "box": [1, 2, 3, 4], "image": 1}], "frame": "unit", "order": "xywh", "size": [9, 9], "patient": "p", "split": "s", "fields": {"a": "b"}})"},
      {"gemex",
       R"({"question": "q?", "choices": ["A: x", "B: y"], "type": "location", "answer": ["A"], "reason": "r", "visual_regions": ["spine"], "visual_locations": [[1, 2, 3, 4]], "image_path": "p10/a.jpg", "ori_report": "o", "q_id": 3, "row_id": 4})"},
      {"gemex_train",
       R"({"row_id": 1, "image": "a.jpg", "q_type": "closed", "type_prompt": "p", "conversations": [{"from": "human", "value": "<image>\nq?"}, {"from": "gpt", "value": "<answer> yes <reason> r <location> [[1, 2, 3, 4]]"}]})"},
      {"conversations",
       R"({"id": "c", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nq?"}, {"from": "gpt", "value": "yes"}]})"},
      {"conversations",
       R"({"images": [{"path": "a.jpg"}], "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q?"}]}, {"role": "assistant", "content": "yes"}]})"},
      {"vqa_rad",
       R"({"qid": 1, "image_name": "a.jpg", "question": "q?", "answer": "yes", "answer_type": "CLOSED", "phrase_type": "freeform"})"},
      {"slake",
       R"({"qid": 1, "img_name": "a/b.jpg", "question": "q?", "answer": "yes", "q_lang": "en", "answer_type": "CLOSED", "triple": ["x", "_", "y"]})"}};
  const std::vector<Json> others = {
      nullptr,          true, -3, 1e300, "text", Json::array(), Json::object(), Json::array({Json::array({1})}),
      Json{{"type", 5}}};
  std::int64_t num_bad = 0;
  for (const auto& [format, text] : rows) {
    const Json row = Json::parse(text);
    std::vector<Json::json_pointer> places;
    collect_places(row, Json::json_pointer(), places);
    std::string content = row.dump() + "\n";
    std::int64_t num_rows = 1;
    for (const Json::json_pointer& place : places) {
      for (const Json& other : others) {
        Json changed = row;
        changed[place] = other;
        content += changed.dump() + "\n";
        ++num_rows;
      }
    }
    std::unique_ptr<Dataset> dataset;
    ASSERT_NO_THROW(dataset = open(content, {.format = format})) << format;
    num_bad += std::ssize(dataset->bad_rows());
    EXPECT_GE(dataset->size() + std::ssize(dataset->bad_rows()), num_rows) << format;
    for (std::int64_t i = 0; i < std::ssize(dataset->bad_rows()); ++i) ASSERT_NO_THROW(dataset->salvage(i));
    for (std::int64_t i = 0; i < dataset->size(); ++i) ASSERT_NO_THROW(dataset->get(i));
  }
  EXPECT_GT(num_bad, 300);
}

TEST_F(Formats, MsCxrOfAnyKindIsNeverFatal) {
  const Json whole = Json::parse(
      R"({"categories": [{"id": 1, "name": "Edema"}], "images": [{"id": 9, "path": "a.jpg", "split": "train", "width": 99, "height": 99}],
          "annotations": [{"image_id": 9, "category_id": 1, "bbox": [1, 2, 3, 4], "label_text": ["x"]}]})");
  std::vector<Json::json_pointer> places;
  collect_places(whole, Json::json_pointer(), places);
  for (std::size_t i = 1; i < places.size(); ++i) {
    for (const Json& other : {Json(nullptr), Json(5), Json("text"), Json::array(), Json::object()}) {
      Json changed = whole;
      changed[places[i]] = other;
      ASSERT_NO_THROW(open(changed.dump(), {.format = "ms_cxr"})) << changed;
    }
  }
}

// ---- our own layout ----

constexpr const char* kOwn =
    R"({"id": "q1", "images": ["/files/p10/p10000032/s1/a.jpg", "b.png"], "question": "Which side?", )"
    R"j("type": "single", "choices": ["A: left", "B: right"], "think": "see (region [1, 2, 3, 4])", "answer": "B", )j"
    R"("boxes": [{"name": "left lung", "box": [10, 20, 5, 6]}, {"name": "x", "box": [1, 2, 3, 4], "image": 1}], )"
    R"("frame": "letterbox-336", "order": "xywh", "size": [300, 200], "split": "dev", "content_type": "location", )"
    R"("fields": {"modality": "CR"}})";

TEST_F(Formats, OwnLinesHoldEverything) {
  const auto dataset = open(kOwn);
  ASSERT_EQ(dataset->size(), 1) << reasons(*dataset);
  const Sample sample = dataset->get(0);
  EXPECT_EQ(sample.id, "q1");
  EXPECT_EQ(sample.image, "p10/p10000032/s1/a.jpg");
  EXPECT_THAT(sample.more_images, ElementsAre("b.png"));
  EXPECT_EQ(sample.patient, "p10000032");
  EXPECT_EQ(sample.type, QuestionType::single_choice);
  EXPECT_EQ(sample.answer, "B");
  const BoxFrame frame = BoxFrame::letterbox(336);
  EXPECT_EQ(sample.frame, frame);
  ASSERT_EQ(sample.regions.size(), 1u);
  EXPECT_EQ(sample.regions[0].box, (Box{10, 20, 15, 26, frame}));
  ASSERT_EQ(sample.more_regions.size(), 1u);
  EXPECT_EQ(sample.more_regions[0][0].box, (Box{1, 2, 4, 6, frame}));
  EXPECT_EQ(sample.size, (grounding::ImageSize{300, 200}));
  EXPECT_EQ(sample.split, "dev");
  EXPECT_EQ(sample.content_type, "location");
  EXPECT_EQ(sample.fields.at("modality"), "CR");
}

TEST_F(Formats, OwnLinesAreWrittenAndReadBackEqual) {
  const auto dataset = open(kOwn);
  for (const char* name : {"out.jsonl", "out.jsonl.gz"}) {
    write_jsonl(*dataset, folder_ / name);
    const auto again = open_dataset(folder_ / name);
    ASSERT_EQ(again->size(), 1) << reasons(*again);
    EXPECT_EQ(to_json_line(again->get(0)), to_json_line(dataset->get(0)));
    EXPECT_EQ(detect_format(folder_ / name), "jsonl");
  }
  EXPECT_TRUE(read_file(folder_ / "out.jsonl.gz").starts_with("\x1f\x8b"));
  EXPECT_THROW(write_thinkvg_parquet(*dataset, folder_ / "x.parquet"), std::invalid_argument) << "two pictures";
}

TEST_F(Formats, OwnLinesThatAreWrongSayWhy) {
  const std::string start = R"({"images": ["a.jpg"], "question": "q", "answer": "no")";
  const auto dataset =
      open(start + "}\n" + start + R"(, "boxs": []})" + "\n" + start + R"(, "boxes": [{"box": [1, 2, 3, 4]}]})" + "\n" +
           start + R"(, "frame": "sqare-1"})" + "\n" + start + R"(, "frame": "unit", "boxes": [{"box": [0, 0, 1]}]})" +
           "\n" + start + R"(, "frame": "unit", "boxes": [{"box": [0, 0, 0.5, 1], "image": 1}]})" + "\n" + start +
           R"(, "think": "at [1, 2, 3, 4]"})" + "\n" + R"({"images": [], "question": "q", "answer": "no"})" + "\n" +
           start + R"(, "id": "0"})" + "\n" + start + R"(, "frame": "unit", "boxes": [{"box": [0.5, 0, 0.2, 1]}]})");
  ASSERT_EQ(dataset->size(), 1);
  EXPECT_EQ(dataset->get(0).type, QuestionType::closed);
  const std::string all = reasons(*dataset);
  for (const char* reason :
       {"1: unknown key 'boxs', did you mean 'boxes'", "2: the row has boxes, but no 'frame'",
        "3: unknown box frame 'sqare-1'", "4: a box is a list of four numbers",
        "5: a box is on picture 1, but the row has 1", "6: the row has boxes, but no 'frame'",
        "7: the row names no picture", "8: the id 0 came before",
        "9: box [0.5000, 0.0000, 0.2000, 1.0000] of '': x1 = 0.5 is not below x2 = 0.2: the corners are reversed"}) {
    EXPECT_THAT(all, HasSubstr(reason));
  }
}

TEST_F(Formats, TheFrameCanBeNamedFromOutside) {
  const auto dataset =
      open(R"({"images": ["a.jpg"], "question": "q", "answer": "no", "boxes": [{"box": [1, 2, 3, 4]}]})",
           {.frame = "letterbox-224"});
  ASSERT_EQ(dataset->size(), 1) << reasons(*dataset);
  EXPECT_EQ(dataset->get(0).regions[0].box.frame, BoxFrame::letterbox(224));
}

// ---- conversations ----

TEST_F(Formats, LlavaConversationsAreOneSampleATurn) {
  const auto dataset = open(R"([
    {"id": "997", "image": "1.jpg", "conversations": [
      {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A radiograph."},
      {"from": "human", "value": "Is the heart large?"}, {"from": "gpt", "value": "Yes."}]},
    {"id": "997", "image": "1.jpg", "conversations": [
      {"from": "human", "value": "Which side?\nA. left B. right\n<image>"}, {"from": "gpt", "value": "B"}]},
    {"id": 5, "image": "2.jpg", "frame": "letterbox-336", "conversations": [
      {"from": "human", "value": "<image>\nWhere?"},
      {"from": "gpt", "value": "<think>t</think><response><answer>there</answer><location><ref>spine</ref><box>[1, 2, 3, 4]</box></location></response>"}]},
    {"id": 6, "image": "2.jpg", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "<response><answer>x</answer>"}]},
    {"id": 7, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"id": 8, "image": "2.jpg", "conversations": [{"from": "human", "value": "q"}]},
    {"id": 9, "image": "2.jpg", "conversations": [{"from": "human", "value": "q"},
      {"from": "gpt", "value": "<answer> a <location> [[1, 2, 3, 4]]"}]}])");
  ASSERT_EQ(dataset->size(), 4) << reasons(*dataset);
  EXPECT_EQ(dataset->get(0).id, "997/0");
  EXPECT_EQ(dataset->get(0).question, "What is this?");
  EXPECT_EQ(dataset->get(1).id, "997/1");
  EXPECT_EQ(dataset->get(1).type, QuestionType::closed);
  EXPECT_EQ(dataset->get(1).answer, "yes");
  EXPECT_EQ(dataset->get(1).fields.at("turn"), "1");
  EXPECT_EQ(dataset->get(2).id, "997");
  EXPECT_EQ(dataset->get(2).type, QuestionType::single_choice);
  EXPECT_THAT(dataset->get(2).choices, ElementsAre("A: left", "B: right"));
  EXPECT_EQ(dataset->get(3).think, "t");
  EXPECT_EQ(dataset->get(3).answer, "there");
  EXPECT_EQ(dataset->get(3).regions[0].box, (Box{1, 2, 3, 4, BoxFrame::letterbox(336)}));
  const std::string all = reasons(*dataset);
  EXPECT_THAT(all, HasSubstr("3: the reply cannot be parsed"));
  EXPECT_THAT(all, HasSubstr("4: the row names no picture"));
  EXPECT_THAT(all, HasSubstr("5: the row has no question with an answer"));
  EXPECT_THAT(all, HasSubstr("6: the reply has boxes, but the row does not name their frame"));
}

TEST_F(Formats, SwiftMessagesAreTheSame) {
  const auto dataset = open(
      R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "<image><image>compare"}, )"
      R"({"role": "assistant", "content": [{"type": "text", "text": "no change"}]}], "images": ["a.jpg", {"path": "b"}]})"
      "\n"
      R"({"messages": [{"role": "user", "content": "compare"}, {"role": "assistant", "content": "same"}], )"
      R"("images": [{"path": "/a.jpg"}, {"path": "b.jpg"}]})"
      "\n"
      R"({"messages": [{"role": "tool", "content": "x"}], "images": ["a.jpg"]})");
  EXPECT_EQ(detect_format(folder_ / "rows"), "conversations");
  ASSERT_EQ(dataset->size(), 1) << reasons(*dataset);
  EXPECT_EQ(dataset->get(0).image, "a.jpg");
  EXPECT_THAT(dataset->get(0).more_images, ElementsAre("b.jpg"));
  EXPECT_THAT(reasons(*dataset), HasSubstr("'tool' is no speaker"));
}

// ---- VQA-RAD, SLAKE, PathVQA ----

TEST_F(Formats, TrlPromptsAndCompletionsAreTheSame) {
  // As turns, whose pictures stand beside them or among their parts, and as plain texts.
  const auto dataset = open(
      R"({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Is it clear?"}], "completion": [{"role": "assistant", "content": "Yes."}], "images": ["/files/p10/p10000032/a.jpg"]})"
      "\n"
      R"({"prompt": [{"role": "user", "content": [{"type": "image", "image": "file:///p10/p10000032/b.jpg"}, {"type": "image", "path": "c.jpg"}, {"type": "text", "text": "What changed?"}]}], "completion": [{"role": "assistant", "content": [{"type": "text", "text": "Nothing."}]}]})"
      "\n"
      R"({"prompt": "Where is it?", "completion": "In the left lung.", "image": "d.jpg"})"
      "\n"
      R"({"prompt": 5, "completion": "x", "image": "d.jpg"})");
  ASSERT_EQ(dataset->size(), 3) << reasons(*dataset);
  EXPECT_THAT(reasons(*dataset), HasSubstr("3: 'prompt' and 'completion' should be texts or lists of turns"));
  EXPECT_EQ(dataset->get(0).image, "p10/p10000032/a.jpg");
  EXPECT_EQ(dataset->get(0).question, "Is it clear?");
  EXPECT_EQ(dataset->get(0).answer, "yes");
  EXPECT_EQ(dataset->get(1).image, "p10/p10000032/b.jpg");
  EXPECT_THAT(dataset->get(1).more_images, ElementsAre("c.jpg"));
  EXPECT_EQ(dataset->get(1).answer, "Nothing.");
  EXPECT_EQ(dataset->get(2).question, "Where is it?");
  EXPECT_EQ(dataset->get(2).answer, "In the left lung.");
}

TEST_F(Formats, VqaRadAsPublished) {
  const auto dataset = open(R"([
    {"qid": "1", "phrase_type": "freeform", "qid_linked_id": "03f451ca", "image_case_url": "https://medpix/1", "image_name": "synpic54610.jpg",
     "image_organ": "CHEST", "evaluation": "not evaluated", "question": "Is there evidence of an aortic aneurysm?",
     "question_rephrase": "NULL", "question_relation": "NULL", "question_frame": "NULL", "question_type": "PRES", "answer": "Yes", "answer_type": "CLOSED "},
    {"qid": 2, "phrase_type": "test_para", "image_name": "synpic1.jpg", "question": "How many masses?", "question_type": "COUNT", "answer": 2, "answer_type": "OPEN"},
    {"qid": "3", "phrase_type": "para", "image_name": "synpic1.jpg", "question": "On which side?", "answer": "left", "answer_type": "CLOSED"}])");
  EXPECT_EQ(detect_format(folder_ / "rows"), "vqa_rad");
  ASSERT_EQ(dataset->size(), 3) << reasons(*dataset);
  const Sample first = dataset->get(0);
  EXPECT_EQ(first.id, "1");
  EXPECT_EQ(first.image, "synpic54610.jpg");
  EXPECT_EQ(first.type, QuestionType::closed);
  EXPECT_EQ(first.answer, "yes");
  EXPECT_EQ(first.content_type, "PRES");
  EXPECT_EQ(first.split, "train");
  EXPECT_EQ(first.fields.at("image_organ"), "CHEST");
  EXPECT_EQ(dataset->get(1).answer, "2");
  EXPECT_EQ(dataset->get(1).split, "test");
  EXPECT_EQ(dataset->get(1).type, QuestionType::open);
  EXPECT_EQ(dataset->get(2).type, QuestionType::closed);
  EXPECT_EQ(dataset->get(2).answer, "left");
}

TEST_F(Formats, SlakeAsPublished) {
  const auto dataset =
      open(R"([{"img_id": 1, "img_name": "xmlab1/source.jpg", "question": "What modality is used?", "answer": "MRI",
     "q_lang": "en", "location": "Abdomen", "modality": "MRI", "answer_type": "OPEN", "base_type": "vqa", "content_type": "Modality",
     "triple": ["vhead", "_", "_"], "qid": 0}])");
  EXPECT_EQ(detect_format(folder_ / "rows"), "slake");
  ASSERT_EQ(dataset->size(), 1) << reasons(*dataset);
  EXPECT_EQ(dataset->get(0).image, "xmlab1/source.jpg");
  EXPECT_EQ(dataset->get(0).content_type, "Modality");
  EXPECT_EQ(dataset->get(0).fields.at("q_lang"), "en");
  EXPECT_EQ(dataset->get(0).id, "0");
}

// Two questions about one picture inside the file, as the hub's VQA-RAD and PathVQA have them; written by
// tests/parity/write_hub_parquet.py with pyarrow, in row groups of two rows.
TEST_F(Formats, HubParquetHoldsItsPictures) {
  const auto dataset = open_dataset(kExcerpts / "hub_vqa.parquet");
  EXPECT_EQ(detect_format(kExcerpts / "hub_vqa.parquet"), "vqa");
  ASSERT_EQ(dataset->size(), 4) << reasons(*dataset);
  const Sample first = dataset->get(0), second = dataset->get(1), third = dataset->get(2);
  EXPECT_EQ(first.question, "are regions of the brain infarcted?");
  EXPECT_EQ(first.answer, "yes");
  EXPECT_EQ(first.image, second.image) << "the same picture, the same name";
  EXPECT_NE(first.image, third.image);
  EXPECT_TRUE(first.image.ends_with(".png")) << first.image;
  for (int i : {2, 0, 1}) EXPECT_TRUE(dataset->embedded_picture(i).starts_with("\x89PNG")) << i;
  EXPECT_EQ(dataset->embedded_picture(0), dataset->embedded_picture(1));
  EXPECT_NE(dataset->embedded_picture(0), dataset->embedded_picture(2));
  // The last row names a file instead.
  EXPECT_EQ(dataset->get(3).image, "folder/c.png");
  EXPECT_EQ(dataset->embedded_picture(3), "");
  EXPECT_EQ(unpack_pictures(*dataset, folder_ / "pictures"), 2) << "the row that names a file is passed over";
  EXPECT_EQ(read_file(folder_ / "pictures" / third.image), dataset->embedded_picture(2));
  EXPECT_THROW(unpack_pictures(*open(kOwn), folder_ / "x"), std::runtime_error);
}

// ---- box sets ----

TEST_F(Formats, MsCxrCsvAndJsonAgree) {
  const std::string path = "files/p10/p10056223/s50881529/0b1.jpg";
  const auto csv = open(
      "category_name,label_text,path,image_width,image_height,x,y,w,h,dicom_id,split\n"
      "Pneumothorax,\"large, left-sided pneumothorax\"," +
      path +
      ",2544,3056,1500,400,600,900,0b1,val\n"
      "Pneumothorax,\"large, left-sided pneumothorax\"," +
      path +
      ",2544,3056,1600,1400,300,200,0b1,val\n"
      "Edema,oedema," +
      path + ",2544,3056,0,0,2600,100,0b1,val\n");
  ASSERT_EQ(csv->size(), 1) << reasons(*csv);
  EXPECT_THAT(reasons(*csv),
              HasSubstr("2: box [0, 0, 2600, 100] of 'Edema' reaches outside the frame original of 2544 x 3056"));
  const Sample sample = csv->get(0);
  EXPECT_EQ(sample.patient, "p10056223");
  EXPECT_EQ(sample.question, "Where does the radiograph show this: \"large, left-sided pneumothorax\"?");
  EXPECT_EQ(sample.answer, "Pneumothorax");
  ASSERT_EQ(sample.regions.size(), 2u);
  EXPECT_EQ(sample.regions[0].box, (Box{1500, 400, 2100, 1300, BoxFrame::original()}));
  EXPECT_EQ(sample.split, "val");
  const auto json =
      open(R"({"info": {}, "categories": [{"id": 1, "name": "Pneumothorax"}],
    "images": [{"id": 9, "file_name": "0b1.jpg", "path": ")" +
           path + R"(", "width": 2544, "height": 3056}, {"id": 7, "path": "b.jpg", "width": "wide", "height": 9}],
    "annotations": [{"id": 1, "image_id": 9, "category_id": 1, "bbox": [1500, 400, 600, 900], "label_text": "large, left-sided pneumothorax"},
                    {"id": 2, "image_id": 9, "category_id": 1, "bbox": [1600, 1400, 300, 200], "label_text": "large, left-sided pneumothorax"},
                    {"id": 3, "image_id": 8, "category_id": 1, "bbox": [1, 1, 3, 2], "label_text": "x"},
                    {"id": 4, "image_id": 7, "category_id": 1, "bbox": [1, 1, 3, 2], "label_text": "x"}]})");
  ASSERT_EQ(json->size(), 1) << reasons(*json);
  EXPECT_EQ(json->get(0).regions, sample.regions);
  EXPECT_EQ(json->get(0).id, sample.id);
  EXPECT_THAT(reasons(*json), ::testing::AllOf(HasSubstr("2: no image has the id 8"),
                                               HasSubstr("3: 'width' should be a whole number, but is \"wide\"")));
}

TEST_F(Formats, VinDrIsReadByReader) {
  const auto dataset = open_dataset(kExcerpts / "vindr.csv");
  EXPECT_EQ(detect_format(kExcerpts / "vindr.csv"), "vindr");
  EXPECT_EQ(dataset->size(), 15) << "5 pictures, 3 readers each";
  EXPECT_THAT(dataset->bad_rows(), IsEmpty());
  std::size_t boxes = 0;
  for (std::int64_t i = 0; i < dataset->size(); ++i) boxes += dataset->get(i).regions.size();
  EXPECT_EQ(boxes, 22u);
  const Sample first = dataset->get(0);
  EXPECT_EQ(first.id, "9a5094b2563a1ef3ff50dc5c7ff71345/R10");
  EXPECT_EQ(first.fields.at("reader"), "R10");
  EXPECT_EQ(first.answer, "Cardiomegaly");
  EXPECT_EQ(first.regions[0].box, (Box{691, 1375, 1653, 1831, BoxFrame::original()}));
  bool any_healthy = false;
  for (std::int64_t i = 0; i < dataset->size(); ++i) any_healthy |= dataset->get(i).answer == "No finding";
  EXPECT_TRUE(any_healthy);
}

TEST_F(Formats, RsnaAsksForOpacities) {
  const auto dataset = open_dataset(kExcerpts / "rsna.csv");
  ASSERT_EQ(dataset->size(), 6) << reasons(*dataset);
  EXPECT_EQ(dataset->get(0).answer, "no");
  const Sample sick = dataset->get(4);
  EXPECT_EQ(sick.answer, "yes");
  ASSERT_EQ(sick.regions.size(), 2u);
  EXPECT_EQ(sick.regions[0].box, (Box{264, 152, 477, 531, BoxFrame::original()}));
  EXPECT_EQ(sick.patient, sick.image);
  const auto bad = open("patientId,x,y,width,height,Target\na,1,2,3,4,0\nb,,,,,1\nc,1,2,3,4,5\nd,1020,2,30,4,1\n");
  EXPECT_EQ(bad->size(), 0);
  const std::string all = reasons(*bad);
  for (const char* reason : {"0: 'Target' is 0, but there is a box", "1: 'x' should be a number, but is ''",
                             "2: 'Target' should be 0 or 1", "3: box [1020, 2, 1050, 6]"})
    EXPECT_THAT(all, HasSubstr(reason));
}

TEST_F(Formats, NihIsReadOutOfGzipWithoutALastNewline) {
  const auto dataset = open_dataset(kExcerpts / "nih.csv.gz");
  EXPECT_EQ(detect_format(kExcerpts / "nih.csv.gz"), "nih");
  ASSERT_EQ(dataset->size(), 5) << reasons(*dataset);
  const Sample sample = dataset->get(0);
  EXPECT_EQ(sample.id, "00013118_008.png/Atelectasis");
  EXPECT_EQ(sample.patient, "00013118");
  EXPECT_NEAR(sample.regions[0].box.x2, 225.084745762712 + 86.7796610169491, 1e-9);
  EXPECT_EQ(dataset->get(4).image, "00017877_001.png");
}

// The whole published tables, as torchxrayvision ships them. What pandas counts in them: 67,914 rows, 36,096 boxes by
// 45,000 pairs of picture and reader; 26,684 patients, 9,555 boxes; 984 boxes.
TEST_F(Formats, WholeBoxTablesParity) {
  const char* given = std::getenv("THINKVG_BOX_TABLES");
  const fs::path folder = given != nullptr ? fs::path(given) : fs::path(THINKVG_TEST_WHEELS) / "torchxrayvision/data";
  if (!fs::is_directory(folder)) {
    GTEST_SKIP() << folder << " is missing: third_party/install.sh installs third_party/test-wheels.txt; or name the "
                 << "folder torchxrayvision/data in THINKVG_BOX_TABLES";
  }
  const auto count = [](const Dataset& dataset) {
    std::size_t boxes = 0;
    for (std::int64_t i = 0; i < dataset.size(); ++i) boxes += dataset.get(i).regions.size();
    return boxes;
  };
  const auto vindr = open_dataset(folder / "vinbigdata-train.csv.gz");
  EXPECT_EQ(vindr->size(), 45000);
  EXPECT_EQ(count(*vindr), 36096u);
  EXPECT_THAT(vindr->bad_rows(), IsEmpty());
  const auto nih = open_dataset(folder / "BBox_List_2017.csv.gz");
  EXPECT_EQ(nih->size(), 984);
  EXPECT_THAT(nih->bad_rows(), IsEmpty());
  const test::ProcessResult unzip = test::run_shell(
      "python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read("
      "\"stage_2_train_labels.csv\"))' " +
      test::shell_quoted((folder / "kaggle_stage_2_train_labels.csv.zip").string()));
  ASSERT_EQ(unzip.exit_code, 0) << unzip.err;
  const auto rsna = open(unzip.out);
  EXPECT_EQ(rsna->size(), 26684);
  EXPECT_EQ(count(*rsna), 9555u);
  EXPECT_THAT(rsna->bad_rows(), IsEmpty());
}

// ---- folders, salvage ----

TEST_F(Formats, AFolderOfParquetFilesIsOneSet) {
  fs::create_directories(folder_ / "set/data");
  const auto write = [&](const std::string& name, int first, int count) {
    std::vector<std::pair<std::string, TextColumn>> columns;
    for (const char* column : {"image_path", "question", "question_type", "response"})
      columns.emplace_back(column, TextColumn());
    for (int i = first; i < first + count; ++i) {
      columns[0].second.append(fmt::format("/p10/p10000001/s1/{}.jpg", i));
      columns[1].second.append("q");
      columns[2].second.append("open_ended_questions");
      columns[3].second.append(i == 3 ? "<response>" : "<response><answer>a</answer></response>");
    }
    write_text_columns(folder_ / "set" / "data" / name, columns);
  };
  write("train-00001-of-00002.parquet", 2, 3);
  write("train-00000-of-00002.parquet", 0, 2);
  const auto dataset = open_dataset(folder_ / "set");
  ASSERT_EQ(dataset->size(), 4);
  EXPECT_EQ(dataset->get(3).image, "p10/p10000001/s1/4.jpg");
  EXPECT_EQ(dataset->get(3).id, "4");
  ASSERT_EQ(dataset->bad_rows().size(), 1u);
  EXPECT_EQ(dataset->bad_rows()[0].row, 3);
  EXPECT_THAT(dataset->bad_rows()[0].reason, HasSubstr("train-00001-of-00002.parquet, row 1: the response"));
}

TEST_F(Formats, BadRowsCanBeSalvaged) {
  const std::string start =
      R"({"images": ["a.jpg"], "question": "q", "answer": "no", "frame": "letterbox-224", "boxes": )";
  const auto dataset =
      open(start + "[{\"box\": [30, 2, 3, 40]}]}\n" + start + "[{\"box\": [3, 2, 300, 40]}]}\n{\n" + start + "[]}");
  ASSERT_EQ(dataset->size(), 1);
  ASSERT_EQ(dataset->bad_rows().size(), 3u) << reasons(*dataset);
  ASSERT_TRUE(dataset->salvage(0).has_value());
  EXPECT_EQ(dataset->salvage(0)->sample.regions[0].box, (Box{30, 2, 3, 40, BoxFrame::letterbox(224)}));
  ASSERT_TRUE(dataset->salvage(1).has_value());
  EXPECT_FALSE(dataset->salvage(2).has_value()) << "nothing can be made of it";
}

}  // namespace
}  // namespace thinkvg::data
