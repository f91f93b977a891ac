#include "thinkvg/data/phantom.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "data/phantom_questions.h"
#include "data/phantom_render.h"
#include "thinkvg/core/files.h"
#include "thinkvg/data/dataset.h"
#include "thinkvg/data/image_size.h"
#include "thinkvg/data/images.h"
#include "thinkvg/grounding/answer.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::data {
namespace {

namespace fs = std::filesystem;
using grounding::BoxFrame;
using ::testing::HasSubstr;

fs::path scratch(const std::string& name) {
  return fs::path(::testing::TempDir()) / fmt::format("thinkvg_phantom_{}_{}", getpid(), name);
}

PhantomOptions small_options(const fs::path& out) {
  PhantomOptions options;
  options.out = out.string();
  options.num_images = 40;
  options.num_dev = 8;
  options.num_test = 20;
  options.seed = 3;
  options.longest_side = 128;
  options.threads = 1;
  return options;
}

std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files[fs::relative(entry.path(), folder).string()] = sha256_file(entry.path());
  }
  return files;
}

// One small phantom for all tests that only read.
class Phantom : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = scratch("shared");
    report_ = write_phantom(small_options(folder_));
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }

  static fs::path folder_;
  static PhantomReport report_;
};
fs::path Phantom::folder_;
PhantomReport Phantom::report_;

TEST_F(Phantom, SameSeedSameBytesOnAnyNumberOfThreads) {
  const fs::path again = scratch("again");
  PhantomOptions options = small_options(again);
  options.threads = 3;
  write_phantom(options);
  EXPECT_EQ(contents(again), contents(folder_));
  // A phantom may be replaced, by another one too.
  options.seed = 4;
  write_phantom(options);
  const auto other = contents(again);
  EXPECT_NE(other.at("data/train.parquet"), contents(folder_).at("data/train.parquet"));
  fs::remove_all(again);
}

TEST_F(Phantom, ALargerSetExtendsASmallerOne) {
  const fs::path larger = scratch("larger");
  PhantomOptions options = small_options(larger);
  options.num_images = 46;
  write_phantom(options);
  const auto all = contents(larger);
  for (const auto& [name, hash] : contents(folder_)) {
    if (name.starts_with("files/") || name.starts_with("gemex_test/") || name == "data/test.parquet") {
      ASSERT_TRUE(all.contains(name)) << name;
      EXPECT_EQ(all.at(name), hash) << name;
    }
  }
  fs::remove_all(larger);
}

TEST_F(Phantom, SplitsHaveTheirSizesAndNoCommonPatient) {
  std::map<std::string, std::set<std::string>> patients, images;
  for (const std::string split : {"train", "dev", "test"}) {
    const auto dataset = open_dataset(folder_ / "data" / (split + ".parquet"));
    EXPECT_TRUE(dataset->bad_rows().empty());
    for (std::int64_t i = 0; i < dataset->size(); ++i) {
      const Sample sample = dataset->get(i);
      ASSERT_EQ(sample.patient.size(), 9u);
      patients[split].insert(sample.patient);
      images[split].insert(sample.image);
    }
    EXPECT_EQ(dataset->size(), 4 * static_cast<std::int64_t>(images[split].size()));
  }
  EXPECT_EQ(images["train"].size(), 12u);
  EXPECT_EQ(images["dev"].size(), 8u);
  EXPECT_EQ(images["test"].size(), 20u);
  std::set<std::string> all;
  std::size_t sum = 0;
  for (const auto& [split, names] : patients) {
    all.insert(names.begin(), names.end());
    sum += names.size();
  }
  EXPECT_EQ(all.size(), sum);
  EXPECT_EQ(report_.splits[2].num_patients, static_cast<std::int64_t>(patients["test"].size()));
}

TEST_F(Phantom, RowsAreWholeSamplesWithBoxesOnTheGridAndInsideThePicture) {
  const ImageFinder finder(folder_);
  for (const std::string split : {"train", "test"}) {
    const auto dataset = open_dataset(folder_ / "data" / (split + ".parquet"));
    for (std::int64_t i = 0; i < dataset->size(); ++i) {
      const Sample sample = dataset->get(i);
      SCOPED_TRACE(split + " " + sample.id);
      const grounding::ImageGeometry geometry(read_image_size(finder.require(sample)));
      ASSERT_FALSE(sample.regions.empty());
      const auto check = [&](const grounding::Box& box) {
        EXPECT_TRUE(box.is_valid());
        for (const double value : {box.x1, box.y1, box.x2, box.y2}) EXPECT_EQ(std::fmod(value, 6), 0);
        EXPECT_EQ(geometry.clip(box), box);
      };
      for (const grounding::Region& region : sample.regions) {
        check(region.box);
        EXPECT_EQ(grounding::normalize_region_name(region.name), region.name);
        EXPECT_THAT(grounding::region_names(), ::testing::Contains(region.name));
      }
      const auto parsed = grounding::parse_response(
          "<think>" + sample.think + "</think>" + grounding::format_response(sample.answer, sample.regions),
          sample.frame);
      EXPECT_TRUE(parsed.complete) << parsed.problem;
      // Every step of the reasoning points at a box, and the answer's boxes are among them.
      ASSERT_EQ(parsed.think_regions.size(), sample.regions.size()) << sample.think;
      for (std::size_t r = 0; r < sample.regions.size(); ++r) {
        check(parsed.think_regions[r].box);
        EXPECT_EQ(parsed.think_regions[r].box, sample.regions[r].box);
      }
      const std::size_t num_choices = sample.choices.size();
      switch (sample.type) {
        case QuestionType::open:
          EXPECT_EQ(num_choices, 0u);
          break;
        case QuestionType::closed:
          EXPECT_THAT(sample.answer, ::testing::AnyOf("yes", "no"));
          break;
        case QuestionType::single_choice:
        case QuestionType::multi_choice:
          EXPECT_EQ(num_choices, 4u);
          EXPECT_EQ(grounding::read_option_letters(sample.answer, grounding::AnswerReading::strict)->size(),
                    sample.type == QuestionType::single_choice ? 1 : (sample.answer.size() + 2) / 3);
          EXPECT_THAT(sample.question, ::testing::EndsWith("?"));
          break;
      }
    }
  }
}

TEST_F(Phantom, GemexRowsAreTheTestRowsInTheSmallerFrame) {
  const auto rows = open_dataset(folder_ / "data" / "test.parquet");
  const auto gemex = open_dataset(folder_ / "gemex_test");
  EXPECT_TRUE(gemex->bad_rows().empty());
  ASSERT_EQ(gemex->size(), rows->size());
  std::multimap<std::string, Sample> by_text;
  for (std::int64_t i = 0; i < gemex->size(); ++i) {
    const Sample sample = gemex->get(i);
    EXPECT_EQ(sample.frame, BoxFrame::letterbox(224));
    by_text.emplace(sample.image + sample.prompt(), sample);
  }
  for (std::int64_t i = 0; i < rows->size(); ++i) {
    const Sample sample = rows->get(i);
    ASSERT_EQ(by_text.count(sample.image + sample.prompt()), 1u) << sample.prompt();
    const Sample& twin = by_text.find(sample.image + sample.prompt())->second;
    EXPECT_EQ(twin.type, sample.type);
    EXPECT_EQ(twin.answer, sample.answer);
    ASSERT_EQ(twin.regions.size(), sample.regions.size());
    for (std::size_t r = 0; r < sample.regions.size(); ++r) {
      EXPECT_EQ(twin.regions[r].name, sample.regions[r].name);
      EXPECT_DOUBLE_EQ(twin.regions[r].box.x1 * 3, sample.regions[r].box.x1 * 2);
      EXPECT_DOUBLE_EQ(twin.regions[r].box.y2 * 3, sample.regions[r].box.y2 * 2);
      EXPECT_EQ(twin.regions[r].box.x1, std::round(twin.regions[r].box.x1));
    }
  }
  const auto multi = open_dataset(folder_ / "gemex_test" / "multi_choice_question.jsonl");
  EXPECT_EQ(multi->get(3).id, "multi_choice/3");
}

TEST_F(Phantom, AnnotationsNameEveryPictureWithItsRegions) {
  std::ifstream lines(folder_ / "annotations.jsonl");
  std::int64_t count = 0;
  const ImageFinder finder(folder_);
  for (std::string line; std::getline(lines, line); ++count) {
    const Json row = Json::parse(line);
    const auto size = read_image_size(finder.find(row["image_path"].get<std::string>()));
    EXPECT_EQ(size, (grounding::ImageSize{row["width"].get<std::int64_t>(), row["height"].get<std::int64_t>()}));
    std::set<std::string> names;
    for (const Json& item : row["items"]) {
      names.insert(item["name"].get<std::string>());
      EXPECT_LE(item["box"][2].get<double>(), size.width);
      EXPECT_LT(item["box"][0].get<double>(), item["box"][2].get<double>());
    }
    for (const char* name : {"right lung", "left lower lung zone", "cardiac silhouette", "trachea"}) {
      EXPECT_TRUE(names.contains(name)) << name;
    }
  }
  EXPECT_EQ(count, 40);
}

TEST_F(Phantom, TheReportCountsWhatWasWritten) {
  EXPECT_EQ(report_.splits[0].num_questions, 48);
  EXPECT_EQ(report_.splits[2].num_images, 20);
  EXPECT_THAT(report_.table(), HasSubstr("single_choice"));
  const Json stored = read_json_file(folder_ / "phantom.json");
  EXPECT_EQ(stored["statistics"], report_.to_json());
  EXPECT_EQ(stored["settings"]["num_test"], 20);
  EXPECT_FALSE(stored["settings"].contains("threads"));
}

// Many scenes are asked, none is drawn.
TEST(PhantomQuestions, TheTextAloneDoesNotGiveTheAnswer) {
  phantom::Questioner questioner(6);
  std::map<QuestionType, std::map<std::string, int>> answers;
  std::map<std::string, std::map<std::string, int>> by_text;
  std::map<QuestionType, int> totals;
  const int num_scenes = 1500;
  for (std::uint64_t i = 0; i < num_scenes; ++i) {
    const phantom::Scene scene = phantom::make_scene({11, 0, i, 0}, 384);
    RandomStream random({11, i});
    for (const QuestionType type :
         {QuestionType::open, QuestionType::closed, QuestionType::single_choice, QuestionType::multi_choice}) {
      const phantom::Question question = questioner.ask(scene, type, random, {});
      ASSERT_FALSE(question.text.empty());
      ++totals[type];
      ++answers[type][question.answer];
      ++by_text[question.text][type == QuestionType::single_choice ? question.answer : question.content];
    }
  }
  const auto majority = [](const std::map<std::string, int>& counts) {
    int most = 0, total = 0;
    for (const auto& [answer, count] : counts) {
      most = std::max(most, count);
      total += count;
    }
    return std::pair(most, total);
  };
  const auto rate = [&](QuestionType type) { return majority(answers[type]).first / static_cast<double>(num_scenes); };
  EXPECT_NEAR(rate(QuestionType::closed), 0.5, 0.02);
  EXPECT_NEAR(rate(QuestionType::single_choice), 0.25, 0.02);
  EXPECT_LT(rate(QuestionType::multi_choice), 0.20);
  EXPECT_LT(rate(QuestionType::open), 0.25);
  for (const auto& [text, counts] : by_text) {
    const auto [most, total] = majority(counts);
    if (total < 40) continue;
    const bool yes_no = counts.contains("yes");
    const bool letters = counts.contains("A") || counts.contains("B");
    if (yes_no) {
      EXPECT_LT(most, 0.5 * total + 4) << text;
    } else if (letters) {
      EXPECT_LT(most, 0.25 * total + 4) << text;
    } else {
      EXPECT_LE(most, 0.5 * total + 4) << text;
    }
  }
}

TEST(PhantomQuestions, SeveralFindingsGiveSeveralBoxes) {
  phantom::Questioner questioner(6);
  std::map<std::size_t, int> counts;
  for (std::uint64_t i = 0; i < 200; ++i) {
    const phantom::Scene scene = phantom::make_scene({2, 1, i, 0}, 384);
    RandomStream random({2, i});
    const phantom::Question question = questioner.ask(scene, QuestionType::multi_choice, random, {});
    ++counts[question.regions.size()];
    if (!scene.findings.empty()) {
      EXPECT_EQ(question.regions.size(), (question.answer.size() + 2) / 3);
    }
  }
  EXPECT_GT(counts[1], 40);
  EXPECT_GT(counts[2], 30);
  EXPECT_GT(counts[3], 5);
}

TEST(PhantomScene, FindingsAreVisibleInTheirBoxes) {
  // The same scene with and without its findings differs inside the finding's box, and hardly elsewhere.
  int checked = 0;
  for (std::uint64_t i = 0; i < 40; ++i) {
    phantom::Scene scene = phantom::make_scene({21, 0, i, 0}, 384);
    if (scene.findings.size() != 1 || scene.findings[0].kind == phantom::Kind::cardiomegaly) continue;
    const phantom::Finding finding = scene.findings[0];
    scene.exposure.noise = 0;
    const image::Picture with = phantom::render(scene);
    scene.findings.clear();
    const image::Picture without = phantom::render(scene);
    double inside = 0, outside = 0, num_inside = 0, num_outside = 0;
    for (std::int64_t y = 0; y < with.height; ++y) {
      for (std::int64_t x = 0; x < with.width; ++x) {
        const auto at = static_cast<std::size_t>((y * with.width + x) * 3);
        const double difference = std::abs(int(with.pixels[at]) - int(without.pixels[at]));
        const bool in =
            x >= finding.box.x1 - 3 && x <= finding.box.x2 + 3 && y >= finding.box.y1 - 3 && y <= finding.box.y2 + 3;
        (in ? inside : outside) += difference;
        (in ? num_inside : num_outside) += 1;
      }
    }
    ++checked;
    EXPECT_GT(inside / num_inside, 12) << phantom::kind_name(finding.kind);
    EXPECT_LT(outside / num_outside, 1.5) << phantom::kind_name(finding.kind);
  }
  EXPECT_GT(checked, 5);
}

TEST(PhantomScene, BothOrientationsInMimicsProportions) {
  int portrait = 0;
  for (std::uint64_t i = 0; i < 60; ++i) {
    const auto size = phantom::make_scene({5, 2, i, 0}, 384).size;
    EXPECT_EQ(std::max(size.width, size.height), 384);
    EXPECT_EQ(std::min(size.width, size.height), 320);
    if (size.height > size.width) ++portrait;
  }
  EXPECT_GT(portrait, 15);
  EXPECT_LT(portrait, 45);
}

TEST(PhantomScene, PositionsCannotBeGuessed) {
  // With one fixed box for the right lower zone, chosen as the mean of all, IoU stays far from 1.
  std::vector<grounding::Box> boxes;
  grounding::Box mean{0, 0, 0, 0, BoxFrame::letterbox(336)};
  for (std::uint64_t i = 0; i < 200; ++i) {
    const phantom::Scene scene = phantom::make_scene({6, 0, i, 0}, 384);
    const auto& region = scene.regions[static_cast<std::size_t>(phantom::Place::right_lower_zone)];
    boxes.push_back(phantom::snapped(region, scene.size, 6));
    mean.x1 += boxes.back().x1 / 200;
    mean.y1 += boxes.back().y1 / 200;
    mean.x2 += boxes.back().x2 / 200;
    mean.y2 += boxes.back().y2 / 200;
  }
  double sum = 0;
  for (const grounding::Box& box : boxes) sum += grounding::iou(box, mean) / 200;
  EXPECT_LT(sum, 0.6);
}

TEST(PhantomOptionsCheck, SaysWhatIsWrong) {
  const auto message = [](auto change) -> std::string {
    PhantomOptions options = small_options(scratch("never"));
    change(options);
    try {
      write_phantom(options);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message([](PhantomOptions& o) { o.out = ""; }), HasSubstr("folder"));
  EXPECT_THAT(message([](PhantomOptions& o) { o.num_images = 0; }), HasSubstr("num_images is 1 to"));
  EXPECT_THAT(message([](PhantomOptions& o) { o.num_dev = 30; }), HasSubstr("take more than the 40 pictures"));
  EXPECT_THAT(message([](PhantomOptions& o) { o.box_grid = 0; }), HasSubstr("box_grid"));
  EXPECT_FALSE(fs::exists(scratch("never")));
}

TEST(PhantomOptionsCheck, KeepsAForeignFolder) {
  const fs::path folder = scratch("foreign");
  fs::create_directories(folder);
  write_file_atomically(folder / "thesis.txt", "years of work");
  EXPECT_THROW(write_phantom(small_options(folder)), std::invalid_argument);
  EXPECT_TRUE(fs::exists(folder / "thesis.txt"));
  fs::remove_all(folder);
}

TEST(PhantomOptionsCheck, AFailureLeavesNothingBehind) {
  const fs::path folder = scratch("parent");
  fs::create_directories(folder);
  EXPECT_THROW(write_phantom(small_options(folder / "set"),
                             [](std::int64_t, std::int64_t) { throw std::runtime_error("stop"); }),
               std::runtime_error);
  EXPECT_TRUE(fs::is_empty(folder));
  fs::remove_all(folder);
}

}  // namespace
}  // namespace thinkvg::data
