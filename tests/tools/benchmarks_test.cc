// The files in configs/benchmarks, each on a small made-up set of the benchmark's own layout.

#include <gmock/gmock.h>

#include <fstream>

#include "tests/support/process.h"
#include "thinkvg/core/json.h"

namespace thinkvg {
namespace {

using test::ProcessResult;
using testing::HasSubstr;

class BenchmarksEndToEnd : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& content) const {
    const std::filesystem::path file = folder_ / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << content;
    return file.string();
  }

  static std::string config(const std::string& name) {
    return std::string(THINKVG_SOURCE_DIR) + "/configs/benchmarks/" + name + ".yaml";
  }

  // Scores {"id": .., "response": ..} of an answer with one box in the reference's frame.
  Json score(const std::string& name, const std::string& data,
             const std::vector<std::pair<std::string, std::string>>& responses) const {
    std::string lines;
    for (const auto& [id, response] : responses) lines += Json({{"id", id}, {"response", response}}).dump() + "\n";
    const ProcessResult got = test::run_process({THINKVG_PROGRAM, "score", "--config", config(name), "--data", data,
                                                 "--predictions", write("predictions.jsonl", lines), "--json"});
    EXPECT_EQ(got.exit_code, 0) << got.err;
    return got.exit_code == 0 ? Json::parse(got.out) : Json();
  }

  static std::string said(const std::string& answer, const std::string& places = "") {
    return "<response><answer>" + answer + "</answer>" + places + "</response>";
  }
  static std::string at(const std::string& name, const std::string& box) {
    return "<ref>" + name + "</ref><box>" + box + "</box>";
  }

  test::TemporaryFolder folder_;
};

TEST_F(BenchmarksEndToEnd, EachConfigIsReadByEvalToo) {
  int count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(THINKVG_SOURCE_DIR) + "/configs/benchmarks")) {
    const ProcessResult got = test::run_process({THINKVG_PROGRAM, "eval", "--config", entry.path().string()});
    EXPECT_EQ(got.exit_code, 2) << entry.path();
    EXPECT_THAT(got.err, HasSubstr("needs --model")) << entry.path();
    ++count;
  }
  EXPECT_EQ(count, 7);
}

TEST_F(BenchmarksEndToEnd, Gemex) {
  for (const char* type : {"open_ended", "closed_ended", "single_choice", "multi_choice"}) {
    const bool choice = std::string(type).ends_with("choice");
    Json row = {{"question", "What is seen?"},
                {"type", "abnormality"},
                {"answer", std::string(type) == "multi_choice" ? Json::array({"A", "B"})
                           : choice                            ? Json("A")
                           : std::string(type) == "open_ended" ? Json("A nodule")
                                                               : Json("yes")},
                {"reason", "because"},
                {"visual_regions", {"left lung"}},
                {"visual_locations", {{20, 40, 100, 200}}},
                {"image_path", "p10/p10000001/s1/a.jpg"},
                {"ori_report", ""},
                {"q_id", 0},
                {"row_id", 0}};
    if (choice) row["choices"] = {"A: nodule", "B: effusion"};
    write("gemex/" + std::string(type) + "_question.jsonl", row.dump());
  }
  const std::string box = "<location>" + at("left lung", "[20, 40, 100, 200]") + "</location>";
  const Json got = score("gemex", (folder_ / "gemex").string(),
                         {{"open/0", said("a nodule", box)},
                          {"closed/0", said("yes", box)},
                          {"single_choice/0", said("A", box)},
                          {"multi_choice/0", said("A, B", box)}});
  EXPECT_EQ(got["num_questions"]["overall"], 4);
  EXPECT_EQ(got["a_score"]["overall"], 1.0);
  EXPECT_EQ(got["v_score"]["overall"], 1.0);
  EXPECT_EQ(got["v_score"]["by_content"]["abnormality"], 1.0);
  EXPECT_EQ(got["v_score"]["by_region"]["left lung"], 1.0);
}

TEST_F(BenchmarksEndToEnd, ThinkvgLeavesThePatientsOfTrainingOut) {
  const std::string phantom = (folder_ / "phantom").string();
  const ProcessResult made = test::run_process({THINKVG_PROGRAM, "phantom", "--out", phantom, "--num_images", "60",
                                                "--num_dev", "0", "--num_test", "0", "--longest_side", "64"});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  // The file has only a train split, as the release.
  std::vector<std::pair<std::string, std::string>> all;
  for (int i = 0; i < 200; ++i) all.emplace_back(std::to_string(i), said("yes"));
  const Json got = score("thinkvg_heldout", phantom + "/data/train.parquet", all);
  const auto count = got["num_questions"]["overall"].get<int>();
  EXPECT_GT(count, 4);
  EXPECT_LT(count, 60) << "about a tenth of 240";
  EXPECT_THAT(got["provenance"]["subset"].get<std::string>(), HasSubstr("patients 0.9:1 by seed 0"));
}

TEST_F(BenchmarksEndToEnd, VqaRadSlakeAndPathVqa) {
  const std::string rad = write("rad.json", R"([
    {"qid": 1, "phrase_type": "test_freeform", "image_name": "a.jpg", "image_organ": "CHEST", "question": "Clear?",
     "answer": "Yes", "answer_type": "CLOSED"},
    {"qid": 2, "phrase_type": "test_para", "image_name": "a.jpg", "image_organ": "CHEST", "question": "Where?",
     "answer": "right lower lobe", "answer_type": "OPEN"},
    {"qid": 3, "phrase_type": "freeform", "image_name": "b.jpg", "image_organ": "HEAD", "question": "Clear?",
     "answer": "No", "answer_type": "CLOSED"}])");
  const Json of_rad = score("vqa_rad", rad, {{"1", said("yes")}, {"2", said("the lower lobe")}, {"3", said("yes")}});
  EXPECT_EQ(of_rad["num_questions"]["overall"], 2) << "training questions are left out";
  EXPECT_EQ(of_rad["a_score"]["overall"], 1.0);
  EXPECT_NEAR(of_rad["token_recall"]["overall"].get<double>(), 2.0 / 3, 1e-12);

  // The hub's files name no phrase types: each is a split.
  const std::string hub = std::string(THINKVG_TEST_DATA) + "/formats/hub_vqa.parquet";
  EXPECT_EQ(score("vqa_rad", hub, {{"0", said("yes")}})["num_questions"]["overall"], 4);

  const auto slake_row = [](int id, const char* language, const char* modality, const char* place) {
    return Json{{"img_id", id},
                {"img_name", "x" + std::to_string(id) + "/source.jpg"},
                {"question", "Normal?"},
                {"answer", "Yes"},
                {"q_lang", language},
                {"location", place},
                {"modality", modality},
                {"answer_type", "CLOSED"},
                {"base_type", "vqa"},
                {"content_type", "Abnormality"},
                {"triple", {"vhead", "_", "_"}},
                {"qid", id}};
  };
  const std::string slake =
      write("slake.json", Json({slake_row(1, "en", "X-Ray", "Lung"), slake_row(2, "zh", "X-Ray", "Lung"),
                                slake_row(3, "en", "MRI", "Brain"), slake_row(4, "en", "X-Ray", "Chest_heart")})
                              .dump());
  const Json of_slake = score("slake", slake, {{"1", said("Yes.")}, {"4", said("no")}});
  EXPECT_EQ(of_slake["num_questions"]["overall"], 2);
  EXPECT_EQ(of_slake["a_score"]["overall"], 0.5);

  const std::string path = std::string(THINKVG_TEST_DATA) + "/formats/hub_vqa.parquet";
  const Json of_path = score("pathvqa_closed", path, {{"0", said("yes")}});
  EXPECT_GT(of_path["num_questions"]["overall"].get<int>(), 0);
  EXPECT_EQ(of_path["num_questions"]["overall"], of_path["num_questions"]["by_type"]["closed"]);
}

TEST_F(BenchmarksEndToEnd, MsCxrPhrases) {
  const std::string rows =
      "category_name,label_text,path,image_width,image_height,x,y,w,h,dicom_id,split\n"
      "Edema,oedema,files/p10/p10056223/s50881529/0b1.jpg,2544,3056,100,100,600,900,0b1,test\n"
      "Edema,more oedema,files/p10/p10056223/s50881529/0b1.jpg,2544,3056,0,0,600,100,0b1,train\n";
  const Json got =
      score("ms_cxr", write("ms_cxr.csv", rows),
            {{"0b1/Edema/oedema", said("Edema", "<location>" + at("Edema", "[100, 100, 700, 600]") + "</location>")}});
  EXPECT_EQ(got["num_questions"]["overall"], 1);
  EXPECT_NEAR(got["v_score"]["overall"].get<double>(), 5.0 / 9, 1e-12);
  EXPECT_EQ(got["acc_0.5"]["overall"], 1.0);
  EXPECT_EQ(got["acc_0.7"]["overall"], 0.0);
}

TEST_F(BenchmarksEndToEnd, VindrReadersAreFused) {
  const std::string rows =
      "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
      "aa,Cardiomegaly,3,R8,100,100,300,300\n"
      "aa,Cardiomegaly,3,R9,110,100,310,300\n"
      "aa,Nodule/Mass,8,R9,500,500,560,560\n"
      "bb,No finding,14,R8,,,,\n"
      "bb,No finding,14,R9,,,,\n";
  const std::string found =
      "<location>" + at("Cardiomegaly", "[105, 100, 305, 300]") + at("Nodule/Mass", "[0, 0, 50, 50]") + "</location>";
  const Json got = score("vindr_cxr", write("vindr.csv", rows),
                         {{"aa", said("Cardiomegaly, Nodule/Mass", found)}, {"bb", said("No finding")}});
  EXPECT_EQ(got["num_questions"]["overall"], 2) << "one a picture, not one a reader";
  EXPECT_EQ(got["detection"]["num_reference"], 2);
  EXPECT_NEAR(got["detection"]["by_label"]["cardiomegaly"].get<double>(), 1, 1e-9);
  EXPECT_EQ(got["detection"]["by_label"]["nodule mass"], 0.0);
  EXPECT_NEAR(got["detection"]["at"]["0.50"].get<double>(), 0.5, 1e-9);
  EXPECT_NEAR(got["detection"]["at"]["0.40"].get<double>(), 0.5, 1e-9) << "the challenge's threshold";
}

}  // namespace
}  // namespace thinkvg
