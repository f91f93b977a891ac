#include "thinkvg/data/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <filesystem>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/jsonl.h"
#include "thinkvg/grounding/geometry.h"
#include "thinkvg/image/picture.h"
#include "thinkvg/text/tokenizer.h"

namespace thinkvg::data {
namespace {

namespace fs = std::filesystem;
using grounding::Box;
using grounding::BoxFrame;
using grounding::ImageGeometry;
using grounding::ImageSize;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Inspect : public ::testing::Test {
 protected:
  fs::path file(const std::string& name, const std::string& content) const {
    write_file_atomically(folder_ / name, content);
    return folder_ / name;
  }
  Json report(const Dataset& dataset) {
    inspection_ = inspect(dataset, options_);
    return inspection_.report;
  }
  test::TemporaryFolder folder_;
  InspectOptions options_;
  Inspection inspection_;
};

// Boxes all over wide and tall pictures, cut to the pictures' edges, as whole numbers of the frame.
std::unique_ptr<Dataset> boxes_in(const BoxFrame& truth, const BoxFrame& declared, bool with_sizes = true) {
  RandomStream random({61});
  std::vector<Sample> samples;
  for (int i = 0; i < 400; ++i) {
    const ImageSize size = i % 2 == 0 ? ImageSize{3056, 2544} : ImageSize{2544, 3056};
    const ImageGeometry geometry(size);
    Sample sample;
    sample.id = std::to_string(i);
    sample.image = fmt::format("{}.jpg", i);
    sample.question = "q";
    sample.answer = "a";
    sample.frame = declared;
    if (with_sizes) sample.size = size;
    for (int b = 0; b < 3; ++b) {
      const double x = random.uniform(-0.1, 0.9), y = random.uniform(-0.1, 0.9);
      const Box unit{x, y, x + random.uniform(0.1, 0.4), y + random.uniform(0.1, 0.4), BoxFrame::unit()};
      Box box = geometry.rounded(geometry.convert(geometry.clip(unit), truth));
      box.frame = declared;
      sample.regions.push_back({"right lung", box});
    }
    samples.push_back(std::move(sample));
  }
  return make_dataset(std::move(samples));
}

TEST_F(Inspect, TellsTheFrameOfBoxes) {
  const std::vector<BoxFrame> frames = {
      BoxFrame::letterbox(336), BoxFrame::letterbox(224), BoxFrame::stretch(336, 336), BoxFrame::original(),
      BoxFrame::unit(),         BoxFrame::thousand(),     BoxFrame::hundred(),         BoxFrame::stretch(224, 224)};
  for (const BoxFrame& truth : frames) {
    for (const BoxFrame& declared : frames) {
      const Json frame = report(*boxes_in(truth, declared))["frame"];
      EXPECT_EQ(frame["likely"], truth.name()) << "declared " << declared.name();
      EXPECT_EQ(frame["agrees"], truth == declared) << truth.name() << " declared " << declared.name();
    }
  }
}

TEST_F(Inspect, SaysHowMuchOfTheFrameCanBeKnown) {
  const Json without = report(*boxes_in(BoxFrame::letterbox(224), BoxFrame::letterbox(336), false))["frame"];
  EXPECT_EQ(without["sizes_known"], false);
  EXPECT_EQ(without["agrees"], false) << "the scale shows without the sizes";
  EXPECT_THAT(without["verdict"].get<std::string>(), HasSubstr("without the pictures' sizes"));
  const Json empty = report(*make_dataset({}))["frame"];
  EXPECT_TRUE(empty["agrees"].is_null());
  EXPECT_THAT(empty["verdict"].get<std::string>(), HasSubstr("too few"));
}

constexpr const char* kMessy =
    // Fine.
    R"j({"id": "1", "images": ["p10/p10000001/s1/a.png"], "question": "Which?", "choices": ["A: x", "B: y"], "answer": "A", "think": "the left lung (region [10, 60, 50, 90]) is dense", "boxes": [{"name": "left lung", "box": [10, 60, 50, 90]}], "frame": "letterbox-100", "split": "train"})j"
    "\n"
    // The same question: with the same answer, then with another.
    R"j({"id": "2", "images": ["p10/p10000001/s1/a.png"], "question": "which", "choices": ["A: x", "B: y"], "answer": "A", "split": "test"})j"
    "\n"
    R"j({"id": "3", "images": ["p10/p10000001/s1/a.png"], "question": "Which?", "choices": ["A: x", "B: y"], "answer": "B"})j"
    "\n"
    // An answer that is no choice; a picture that is not there; a box on the padding; a box outside; a think-only box.
    R"j({"id": "4", "images": ["p10/p10000002/s1/gone.png"], "question": "Which one?", "choices": ["A: x", "B: y"], "answer": "C"})j"
    "\n"
    R"j({"id": "5", "images": ["p10/p10000001/s1/a.png"], "question": "Where?", "answer": "there", "think": "the heart (region [40, 40, 60, 60]), the spine (region [9, 9, 1, 1])", "boxes": [{"name": "svc", "box": [10, 10, 50, 60]}, {"name": "svc", "box": [10, 5, 20, 15]}, {"name": "svc", "box": [50, 50, 50.5, 50.5]}, {"name": "svc", "box": [50, 50, 50.5, 50.5]}], "frame": "letterbox-100"})j"
    "\n"
    // Bad rows: reversed and too wide, empty, no JSON, the first one again.
    R"j({"id": "6", "images": ["p10/p10000003/s1/b.png"], "question": "Where?", "answer": "there", "boxes": [{"name": "svc", "box": [50, 60, 10, 20]}, {"name": "svc", "box": [80, 40, 120, 60]}, {"name": "svc", "box": [5, 5, 5, 9]}], "frame": "letterbox-100"})j"
    "\n{broken\n"
    R"j({"id": "8", "images": ["p10/p10000003/s1/b.png"], "question": "Where?", "answer": ""})j"
    "\n"
    R"j({"id": "9", "images": ["p10/p10000001/s1/a.png"], "question": "Which?", "choices": ["A: x", "B: y"], "answer": "A", "think": "the left lung (region [10, 60, 50, 90]) is dense", "boxes": [{"name": "left lung", "box": [10, 60, 50, 90]}], "frame": "letterbox-100", "split": "train"})j";

TEST_F(Inspect, FindsWhatIsWrong) {
  fs::create_directories(folder_ / "images/p10/p10000001/s1");
  image::Picture picture{.width = 200, .height = 100, .pixels = std::vector<std::uint8_t>(200 * 100 * 3, 90)};
  image::write_picture(picture, folder_ / "images/p10/p10000001/s1/a.png");
  const fs::path other =
      file("other.jsonl", R"({"images": ["p10/p10000001/s1/z.png"], "question": "q", "answer": "no"})");
  const auto dataset = open_dataset(file("messy.jsonl", kMessy));
  options_.images = (folder_ / "images").string();
  options_.others = {other.string()};
  const Json r = report(*dataset);
  const auto count = [](const Json& list) { return list["count"].get<int>(); };
  const auto first = [](const Json& list) { return list["listed"][0]["reason"].get<std::string>(); };
  EXPECT_EQ(r["rows"], (Json{{"all", 9}, {"usable", 6}, {"bad", 3}}));
  EXPECT_EQ(r["types"]["single_choice"], 5);
  EXPECT_EQ(count(r["bad_rows"]), 3);
  EXPECT_EQ(r["bad_rows"]["listed"][1]["row"], 6);
  EXPECT_EQ(r["pictures"]["named"], 2);
  EXPECT_EQ(r["pictures"]["hit_rate"], 0.5);
  EXPECT_EQ(r["pictures"]["questions_with_picture"], 5);
  EXPECT_THAT(first(r["pictures"]["missing"]), HasSubstr("gone.png"));
  // The picture fills rows 25 to 75 of the letterbox.
  EXPECT_EQ(count(r["boxes"]["on_padding"]), 3) << r["boxes"]["on_padding"];
  EXPECT_EQ(count(r["boxes"]["outside"]), 1);
  EXPECT_THAT(first(r["boxes"]["outside"]), HasSubstr("lies outside the picture of 200 x 100 pixels"));
  EXPECT_EQ(count(r["boxes"]["tiny"]), 2);
  EXPECT_EQ(count(r["boxes"]["repeated"]), 1);
  EXPECT_EQ(count(r["think"]["not_in_answer"]), 1);
  EXPECT_THAT(first(r["think"]["not_in_answer"]), HasSubstr("'heart' [40, 40, 60, 60]"));
  EXPECT_EQ(count(r["think"]["not_in_think"]), 4);
  EXPECT_THAT(first(r["think"]["bad_boxes"]), HasSubstr("the corners are reversed"));
  EXPECT_THAT(first(r["answers"]["not_among_choices"]), HasSubstr("the answer is C, the choices are AB"));
  EXPECT_EQ(count(r["duplicates"]["same_answer"]), 2);
  EXPECT_THAT(first(r["duplicates"]["other_answer"]), HasSubstr("again, with another answer: 'B'"));
  EXPECT_EQ(count(r["splits"]["patients_in_two"]), 1);
  EXPECT_EQ(r["splits"]["others"][0]["patients"], 1);
  EXPECT_EQ(r["lengths"]["unit"], "words");
  std::string problems;
  for (const Json& line : r["problems"]) problems += line["text"].get<std::string>() + "\n";
  EXPECT_THAT(problems, AllOf(HasSubstr("rows cannot be used"), HasSubstr("picture is not under the image root"),
                              HasSubstr("patient is in two splits")));
  EXPECT_EQ(inspection_.examples.size(), 2u) << "one a picture";
  // A terminal shows what to look at, not only how much of it there is.
  EXPECT_THAT(inspection_summary(inspection_),
              AllOf(HasSubstr("50.00 % found"), HasSubstr("3 rows cannot be used"), HasSubstr("row 6: not JSON"),
                    HasSubstr("row 7: the answer is empty"), HasSubstr("gone.png")));
  const std::string page = inspection_html(inspection_, *dataset, options_);
  EXPECT_THAT(page, AllOf(HasSubstr("data:image/jpeg;base64,"), HasSubstr("gone.png"), HasSubstr("picture not found"),
                          HasSubstr("</html>"), Not(HasSubstr("http://")), Not(HasSubstr("src=\"/"))));
}

TEST_F(Inspect, ReasonsOfOneKindAreCountedTogether) {
  std::string rows;
  for (int i = 0; i < 3; ++i)
    rows += fmt::format(
        R"({{"images": ["a.png"], "question": "q{}", "answer": "no", "order": "x{}", "boxes": [], "frame": "unit"}})"
        "\n",
        i, i);
  rows += "{\"images\": \"a.png\", \"question\": \"caf\xe9\", \"answer\": \"no\"}\n";
  rows += R"({"images": ["a.png"], "question": "?", "answer": "no"})";
  const Json bad = report(*open_dataset(file("rows.jsonl", rows)))["bad_rows"];
  EXPECT_EQ(bad["count"], 4);
  EXPECT_EQ(bad["by_reason"].size(), 2u) << bad;
  // The apostrophe of "a box's numbers" opens no quote.
  EXPECT_EQ(bad["by_reason"].value("unknown order of a box's numbers '..'; known are: xyxy, yxyx, xywh, cxcywh", 0), 3)
      << bad;
  ASSERT_EQ(bad["first_of_each_reason"].size(), 2u);
  EXPECT_EQ(bad["first_of_each_reason"][1]["row"], 3);
  EXPECT_THAT(bad["first_of_each_reason"][1]["reason"].get<std::string>(),
              AllOf(HasSubstr("not JSON"), HasSubstr("the text is not UTF-8"), Not(HasSubstr("json.exception"))));
}

TEST_F(Inspect, BoxesOfFurtherPicturesCount) {
  const std::string rows =
      R"j({"images": ["a.png", "b.png"], "question": "What changed?", "answer": "x", "frame": "letterbox-100", "think": "the spine (region [40, 40, 60, 60])", "boxes": [{"name": "svc", "box": [10, 10, 30, 30]}, {"name": "spine", "box": [40, 40, 60, 60], "image": 1}, {"name": "spine", "box": [40, 40, 60, 60], "image": 1}, {"name": "svc", "box": [50, 2, 70, 12], "image": 1}]})j";
  // The second picture fills rows 25 to 75 of the letterbox, the first all of it.
  image::write_picture({.width = 100, .height = 100, .pixels = std::vector<std::uint8_t>(100 * 100 * 3, 90)},
                       folder_ / "a.png");
  image::write_picture({.width = 200, .height = 100, .pixels = std::vector<std::uint8_t>(200 * 100 * 3, 90)},
                       folder_ / "b.png");
  options_.images = folder_.path().string();
  const Json r = report(*open_dataset(file("two.jsonl", rows)));
  EXPECT_EQ(r["boxes"]["count"], 4);
  EXPECT_EQ(r["boxes"]["per_question"]["max"], 4);
  EXPECT_EQ(r["boxes"]["outside"]["count"], 1) << r["boxes"]["outside"];
  EXPECT_EQ(r["boxes"]["repeated"]["count"], 1);
  EXPECT_EQ(r["think"]["not_in_answer"]["count"], 0);
  EXPECT_EQ(r["think"]["not_in_think"]["count"], 2);
  // Both pictures are shown, each with its boxes: the answer's, and the reasoning's on the first.
  const std::string page = inspection_html(inspection_, *open_dataset(folder_ / "two.jsonl"), options_);
  const auto times = [&](std::string_view part) {
    std::size_t count = 0;
    for (std::size_t at = page.find(part); at != std::string::npos; at = page.find(part, at + 1)) ++count;
    return count;
  };
  EXPECT_EQ(times("data:image/jpeg;base64,"), 2u);
  EXPECT_EQ(times("fill=\"none\" stroke=\"#ffb000\""), 2u) << "svc";
  EXPECT_EQ(times("fill=\"none\" stroke=\"#4cc9f0\""), 3u) << "spine";
}

TEST_F(Inspect, LengthsAreCountedInTokens) {
  options_.tokenizer = (fs::path(THINKVG_TEST_DATA) / "tokenizers" / "llama").string();
  const auto dataset = open_dataset(file("x.jsonl", kMessy));
  const Json lengths = report(*dataset)["lengths"];
  EXPECT_EQ(lengths["unit"], "tokens");
  const auto tokenizer = text::load_tokenizer(options_.tokenizer);
  std::vector<std::size_t> counts;
  for (std::int64_t i = 0; i < dataset->size(); ++i)
    counts.push_back(tokenizer->encode(dataset->get(i).prompt()).size());
  EXPECT_EQ(lengths["question"]["max"], *std::max_element(counts.begin(), counts.end()));
  EXPECT_EQ(lengths["question"]["count"], counts.size());
  EXPECT_EQ(lengths["think"]["count"], 3);
}

// A hub file holds its pictures; the page shows them without their being written out first.
TEST_F(Inspect, ShowsPicturesThatTheSetHolds) {
  const auto dataset = open_dataset(fs::path(THINKVG_TEST_DATA) / "formats" / "hub_vqa.parquet");
  report(*dataset);
  EXPECT_THAT(inspection_html(inspection_, *dataset, options_), HasSubstr("data:image/jpeg;base64,"));
}

TEST_F(Inspect, DecodesPicturesWhereAsked) {
  RandomStream random({3});
  image::Picture picture{.width = 64, .height = 48, .pixels = {}};
  for (int i = 0; i < 64 * 48; ++i)
    picture.pixels.insert(picture.pixels.end(), 3, static_cast<std::uint8_t>(random.below(256)));
  const std::string whole = image::encode_jpeg(picture);
  write_file_atomically(folder_ / "whole.jpg", whole);
  write_file_atomically(folder_ / "cut.jpg", whole.substr(0, whole.size() / 2));
  image::write_picture({.width = 8, .height = 8, .pixels = std::vector<std::uint8_t>(8 * 8 * 3, 0)},
                       folder_ / "black.png");
  std::string rows;
  for (const char* name : {"whole.jpg", "cut.jpg", "black.png"})
    rows += fmt::format(R"({{"image": "{}", "frame": "unit", "question": "Is it?", "answer": "no"}})"
                        "\n",
                        name);
  const auto dataset = open_dataset(file("rows.jsonl", rows));
  options_.decode_pictures = true;
  EXPECT_THROW(inspect(*dataset, options_), std::invalid_argument) << "no folder of pictures";
  options_.images = folder_.path().string();
  const Json pictures = report(*dataset)["pictures"];
  ASSERT_EQ(pictures["unreadable"]["count"], 1) << pictures;
  EXPECT_EQ(pictures["unreadable"]["listed"][0]["id"], dataset->get(1).id);
  EXPECT_THAT(pictures["unreadable"]["listed"][0]["reason"].get<std::string>(),
              AllOf(HasSubstr("cut.jpg"), HasSubstr("cut off")));
  ASSERT_EQ(pictures["flat"]["count"], 1);
  EXPECT_EQ(pictures["flat"]["listed"][0]["id"], dataset->get(2).id);
  EXPECT_THAT(pictures["flat"]["listed"][0]["reason"].get<std::string>(), HasSubstr("black.png"));
  EXPECT_THAT(inspection_html(inspection_, *dataset, options_),
              AllOf(HasSubstr("picture cannot be read"), HasSubstr("the file is cut off")));
  // A header alone does not show it, but it shows what no run would decode.
  options_.decode_pictures = false;
  EXPECT_EQ(report(*dataset)["pictures"]["unreadable"]["count"], 0);
  std::string bomb = image::encode_png(picture);
  bomb[16] = bomb[20] = 1;  // sides of 16 million pixels and more
  write_file_atomically(folder_ / "black.png", bomb);
  const Json again = report(*dataset)["pictures"]["unreadable"];
  ASSERT_EQ(again["count"], 1) << again;
  EXPECT_THAT(again["listed"][0]["reason"].get<std::string>(), HasSubstr("more than a run decodes"));
}

TEST_F(Inspect, AFileThatWouldBeTwoPicturesIsAnError) {
  image::write_picture({.width = 8, .height = 8, .pixels = std::vector<std::uint8_t>(8 * 8 * 3, 7)},
                       folder_ / "source.jpg");
  std::string rows;
  for (const char* name : {"xmlab1/source.jpg", "xmlab2/source.jpg"})
    rows += fmt::format(R"({{"image": "{}", "frame": "unit", "question": "Is it?", "answer": "no"}})"
                        "\n",
                        name);
  const auto dataset = open_dataset(file("rows.jsonl", rows));
  options_.images = folder_.path().string();
  const Json unreadable = report(*dataset)["pictures"]["unreadable"];
  ASSERT_EQ(unreadable["count"], 1) << unreadable;
  EXPECT_THAT(unreadable["listed"][0]["reason"].get<std::string>(),
              AllOf(HasSubstr("xmlab1/source.jpg"), HasSubstr("xmlab2/source.jpg")));
}

TEST_F(Inspect, ReadersAreNoRepetition) {
  // Two readers of one picture see other things; one of them gives two findings the same box.
  const fs::path table = file("vindr.csv",
                              "image_id,class_name,rad_id,x_min,y_min,x_max,y_max\n"
                              "a,Cardiomegaly,R1,700,1600,1800,2100\n"
                              "a,Aortic enlargement,R1,700,1600,1800,2100\n"
                              "a,No finding,R2,,,,\n"
                              "a,No finding,R3,,,,\n");
  const Json r = report(*open_dataset(table));
  EXPECT_EQ(r["duplicates"]["same_answer"]["count"], 0) << r["duplicates"];
  EXPECT_EQ(r["duplicates"]["other_answer"]["count"], 0);
  EXPECT_EQ(r["duplicates"]["other_reader"]["count"], 2);
  EXPECT_EQ(r["boxes"]["repeated"]["count"], 0) << r["boxes"]["repeated"];
}

TEST_F(Inspect, AFrameThatNothingFitsIsNotNamed) {
  // Original pixels of pictures whose sizes nobody knows.
  const Json unknown = report(*boxes_in(BoxFrame::original(), BoxFrame::original(), false))["frame"];
  EXPECT_TRUE(unknown["agrees"].is_null());
  EXPECT_FALSE(unknown.contains("likely")) << unknown;
  EXPECT_THAT(unknown["verdict"].get<std::string>(),
              AllOf(HasSubstr("original cannot be judged without the pictures' sizes"), HasSubstr("--images")));
  // One picture in a hundred missing leaves the others to judge by.
  const auto whole = boxes_in(BoxFrame::original(), BoxFrame::original());
  std::vector<Sample> samples;
  for (std::int64_t i = 0; i < whole->size(); ++i) samples.push_back(whole->get(i));
  for (std::size_t i = 0; i < samples.size(); i += 100) samples[i].size = {};
  EXPECT_EQ(report(*make_dataset(std::move(samples)))["frame"]["agrees"], true);
  // Pixels of a frame that is larger than any known one.
  const Json none = report(*boxes_in(BoxFrame::letterbox(5000), BoxFrame::letterbox(336)))["frame"];
  EXPECT_EQ(none["agrees"], false);
  EXPECT_FALSE(none.contains("likely")) << none;
  EXPECT_THAT(none["verdict"].get<std::string>(), HasSubstr("fit no known frame"));
}

// x, y, width, height under the name of corners: most rows are bad, and mending them would make wrong boxes.
TEST_F(Inspect, AnotherOrderOfNumbersIsNotMended) {
  RandomStream random({8});
  std::string rows;
  for (int i = 0; i < 40; ++i) {
    const double x = random.uniform(0, 150), y = random.uniform(0, 150);
    rows += fmt::format(
        R"({{"images": ["{}.png"], "question": "q?", "answer": "no", "frame": "letterbox-224", "boxes": [{{"name": "svc", "box": [{:.1f}, {:.1f}, 40, 40]}}]}})"
        "\n",
        i, x, y);
  }
  const auto dataset = open_dataset(file("xywh.jsonl", rows));
  const Json r = report(*dataset);
  EXPECT_GT(r["boxes"]["reversed"].get<int>(), 20);
  EXPECT_THAT(r["problems"].dump(), HasSubstr("another order"));
  try {
    write_fixed(*dataset, folder_ / "mended.jsonl");
    FAIL() << "no failure";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("another order"), HasSubstr("of 'svc'")));
  }
  EXPECT_FALSE(fs::exists(folder_ / "mended.jsonl"));
}

TEST_F(Inspect, EscapesWhatTheDataSays) {
  const auto dataset = open_dataset(file(
      "x.jsonl",
      R"({"images": ["a.jpg"], "question": "<script>alert(1)</script>", "answer": "\"><img src=x>&", "id": "<b>"})"));
  report(*dataset);
  const std::string page = inspection_html(inspection_, *dataset, options_);
  EXPECT_THAT(page, AllOf(Not(HasSubstr("<script>")), Not(HasSubstr("<img src=x>")), HasSubstr("&lt;script&gt;")));
}

TEST_F(Inspect, FixWritesACleanCopyAndSaysWhatChanged) {
  const auto dataset = open_dataset(file("messy.jsonl", kMessy));
  for (const char* name : {"clean.jsonl", "clean.jsonl.gz"}) {
    const FixResult fixed = write_fixed(*dataset, folder_ / name);
    EXPECT_EQ(fixed.num_kept, 5);
    EXPECT_EQ(fixed.num_mended, 1);
    EXPECT_EQ(fixed.num_dropped, 3) << "two bad rows and a repetition";
    const auto clean = open_dataset(folder_ / name);
    ASSERT_EQ(clean->size(), 6);
    EXPECT_TRUE(clean->bad_rows().empty());
    EXPECT_EQ(to_json_line(clean->get(0)), to_json_line(dataset->get(0)));
    const Sample mended = clean->get(5);
    EXPECT_EQ(mended.id, "6");
    ASSERT_EQ(mended.regions.size(), 2u);
    EXPECT_EQ(mended.regions[0].box, (Box{10, 20, 50, 60, BoxFrame::letterbox(100)}));
    EXPECT_EQ(mended.regions[1].box, (Box{80, 40, 100, 60, BoxFrame::letterbox(100)}));
    const std::string log = read_file(fixed.log);
    EXPECT_THAT(log, AllOf(HasSubstr("its corners were reversed"), HasSubstr("it is cut to the frame letterbox-100"),
                           HasSubstr("dropped: x1 and x2 are both 5"), HasSubstr("not JSON"),
                           HasSubstr("the answer is empty")));
    for (std::size_t begin = 0; begin < log.size();) {
      const std::size_t end = log.find('\n', begin);
      const Json line = Json::parse(log.substr(begin, end - begin));
      EXPECT_TRUE(line.contains("action") && line.contains("reason")) << line;
      begin = end + 1;
    }
  }
  EXPECT_THROW(write_fixed(*dataset, folder_ / "clean.csv"), std::invalid_argument);
}

TEST_F(Inspect, FixLeavesRepetitionsOutAndWritesParquet) {
  const std::string row =
      R"({"images": ["a.jpg"], "question": "q", "answer": "no", "frame": "letterbox-224", "boxes": [{"name": "spine", "box": [2, 4, 6, 8]}])";
  const auto dataset = open_dataset(file("twice.jsonl", row + R"(, "id": "a"})" + "\n" + row + R"(, "id": "b"})"));
  ASSERT_EQ(dataset->size(), 2);
  const FixResult fixed = write_fixed(*dataset, folder_ / "clean.parquet");
  EXPECT_EQ(fixed.num_dropped, 1);
  EXPECT_EQ(detect_format(folder_ / "clean.parquet"), "thinkvg");
  const auto clean = open_dataset(folder_ / "clean.parquet");
  ASSERT_EQ(clean->size(), 1);
  EXPECT_EQ(clean->get(0).regions[0].box, (Box{3, 6, 9, 12, BoxFrame::letterbox(336)}));
  EXPECT_EQ(clean->get(0).type, QuestionType::closed);
}

}  // namespace
}  // namespace thinkvg::data
