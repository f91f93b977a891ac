#include "thinkvg/data/images.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <numeric>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"

namespace thinkvg::data {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kStem = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014";

class Rows final : public Dataset {
 public:
  explicit Rows(std::vector<std::string> images) : images_(std::move(images)) {}
  std::int64_t size() const override { return static_cast<std::int64_t>(images_.size()); }
  Sample get(std::int64_t index) const override {
    Sample sample;
    sample.id = "q" + std::to_string(index);
    sample.image = images_.at(static_cast<std::size_t>(index));
    return sample;
  }
  const std::vector<BadRow>& bad_rows() const override { return bad_; }

 private:
  std::vector<std::string> images_;
  std::vector<BadRow> bad_;
};

class ImageFiles : public ::testing::Test {
 protected:
  ImageFiles() {
    setenv("XDG_CACHE_HOME", (folder_ / "cache").c_str(), 1);
    fs::create_directory(root());
  }
  ~ImageFiles() override { unsetenv("XDG_CACHE_HOME"); }

  fs::path root() const { return folder_ / "mimic"; }
  fs::path make(const fs::path& relative) const {
    const fs::path file = root() / relative;
    fs::create_directories(file.parent_path());
    write_file_atomically(file, "x");
    return file;
  }
  // Times far enough back that a listing of the folder is trusted.
  void grow_old() const {
    for (const auto& entry : fs::recursive_directory_iterator(folder_.path()))
      if (entry.is_directory()) set_old(entry.path());
    set_old(root());
  }
  static void set_old(const fs::path& file) {
    const timespec times[2] = {{1'000'000'000, 0}, {1'000'000'000, 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, file.c_str(), times, 0), 0);
  }
  fs::path index_file() const { return root() / ".thinkvg/pictures.index"; }

  test::TemporaryFolder folder_;
};

TEST_F(ImageFiles, EveryLayoutOfMimic) {
  const std::string wanted = std::string("p10/p10000032/s50414267/") + kStem + ".jpg";
  // Where a copy may put the file, and the folder that the user names.
  const std::vector<std::pair<std::string, std::string>> layouts = {
      {wanted, ""},                                                          // .../files given as root
      {"files/" + wanted, ""},                                               // .../2.0.0
      {"physionet.org/files/mimic-cxr-jpg/2.0.0/files/" + wanted, ""},       // a wget mirror
      {std::string(kStem) + ".png", ""},                                     // flat
      {std::string("images_512/") + kStem + ".jpeg", ""},                    // flat and resized, a level down
      {std::string("files/p10/p10000032/s50414267/") + kStem + ".dcm", ""},  // MIMIC-CXR
      {std::string("p10000032/s50414267/") + kStem + ".JPG", ""},            // without the outer folder
      {"a/b/" + wanted, "a/b"}};
  for (const auto& [place, root_below] : layouts) {
    fs::remove_all(root());
    const fs::path file = make(place);
    const ImageFinder finder((root() / root_below).string());
    for (const std::string& spelling : {wanted, "/" + wanted, "files/" + wanted})
      EXPECT_EQ(fs::weakly_canonical(finder.find(spelling)), fs::weakly_canonical(file)) << place;
    EXPECT_TRUE(finder.find("p10/p10000032/s50414267/other.jpg").empty()) << place;
  }
}

TEST_F(ImageFiles, FirstFolderWins) {
  const fs::path a = make("first/files/p10/a.jpg"), a2 = make("second/p10/a.jpg"), b = make("second/deep/p10/b.jpg");
  const ImageFinder finder(" " + (root() / "first").string() + ", " + (root() / "second").string());
  EXPECT_EQ(finder.folders().size(), 2u);
  EXPECT_EQ(finder.find("p10/a.jpg"), a);
  EXPECT_EQ(finder.find("p10/b.jpg"), b);
  EXPECT_EQ(ImageFinder((root() / "second").string()).find("p10/a.jpg"), a2);
  EXPECT_THAT([&] { ImageFinder(root().string() + ",/no/such/folder"); },
              ::testing::ThrowsMessage<std::runtime_error>(HasSubstr("/no/such/folder")));
  // A comma may be part of a folder's name.
  make("x, y/c.jpg");
  EXPECT_FALSE(ImageFinder((root() / "x, y").string()).find("c.jpg").empty());
}

TEST_F(ImageFiles, OfEqualNamesTheOneWithMostFoldersThenTheFirst) {
  const std::string name(kStem);
  make("z/" + name + ".jpg");
  const fs::path first = make("b/" + name + ".png");
  make("c/" + name + ".jpg");
  EXPECT_EQ(ImageFinder(root().string()).find("p10/" + name + ".jpg"), first);
  const fs::path closer = make("small/p10/" + name + ".jpg");
  fs::remove_all(root() / ".thinkvg");  // the list that is there would do: any of them is the picture
  EXPECT_EQ(ImageFinder(root().string()).find("p10/" + name + ".jpg"), closer);
}

// SLAKE names every picture source.jpg, CheXpert view1_frontal.jpg: only their folders tell them apart.
TEST_F(ImageFiles, APictureOfSomeoneElseIsNeverTaken) {
  const fs::path one = make("Slake/imgs/xmlab1/source.jpg"), two = make("Slake/imgs/xmlab2/source.jpg");
  const fs::path chexpert = make("train/patient00002/study1/view1_frontal.jpg");
  const fs::path unique = make("VQA_RAD Image Folder/synpic54610.jpg");
  make("a/scan.jpg");
  make("b/scan.jpg");
  const ImageFinder finder(root().string());
  EXPECT_EQ(finder.find("xmlab1/source.jpg"), one);
  EXPECT_EQ(finder.find("xmlab2/source.png"), two);
  EXPECT_TRUE(finder.find("xmlab3/source.jpg").empty());
  EXPECT_TRUE(finder.find("other/xmlab1/source.jpg").empty());
  EXPECT_EQ(finder.find("CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg"), chexpert);
  EXPECT_TRUE(finder.find("CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg").empty());
  EXPECT_EQ(finder.find("synpic54610.jpg"), unique);
  EXPECT_TRUE(finder.find("scan.jpg").empty());  // two of that name, and no folder is named
}

TEST_F(ImageFiles, TwoPicturesAreNeverOneFile) {
  make("source.jpg");
  make(std::string(kStem) + ".jpg");
  const ImageFinder finder(root().string());
  const auto two = std::make_shared<Rows>(std::vector<std::string>{"xmlab1/source.jpg", "xmlab2/source.jpg"});
  EXPECT_THAT([&] { with_pictures(two, finder, 0); },
              ::testing::ThrowsMessage<std::runtime_error>(
                  AllOf(HasSubstr("sample q1"), HasSubstr("xmlab1/source.jpg"), HasSubstr("xmlab2/source.jpg"))));
  // One picture in two spellings.
  const auto same = std::make_shared<Rows>(std::vector<std::string>{"imgs/xmlab1/source.jpg", "xmlab1/source.jpg",
                                                                    std::string("p10/s1/") + kStem + ".jpg",
                                                                    std::string("s2/") + kStem + ".png"});
  EXPECT_EQ(with_pictures(same, finder, 1), same);
}

TEST_F(ImageFiles, AnIndexOfAnEarlierVersionIsMadeAgain) {
  // That one did not list .dicom files.
  const fs::path file = make(std::string("train/") + kStem + ".dicom");
  grow_old();
  ImageFinder(root().string()).find(kStem);
  std::string text = read_file(index_file());
  text.replace(text.find("index 2"), 7, "index 1");
  text.erase(text.find("F" + std::string(kStem)), std::string(kStem).size() + 8);
  write_file_atomically(index_file(), text);
  EXPECT_EQ(ImageFinder(root().string()).find(kStem), file);
}

TEST_F(ImageFiles, NamesWithoutExtensionMayHaveDots) {
  const std::string uid = "1.2.276.0.7230010.3.1.4.8323329.1000.1517875165.878027";
  const fs::path flat = make(uid + ".dcm"), deep = make("train/000434271f63a053c4128a0ba6352c7f.dicom");
  const fs::path below = make("series/1.2.276.0.7230010.3.1.4.8323329.1000.1517875165.878028.dcm");
  const ImageFinder finder(root().string());
  EXPECT_EQ(finder.find(uid), flat);
  EXPECT_EQ(finder.find("train/000434271f63a053c4128a0ba6352c7f.tif"), deep) << "converted since it was named";
  EXPECT_EQ(finder.find("1.2.276.0.7230010.3.1.4.8323329.1000.1517875165.878028"), below);
  EXPECT_EQ(finder.find("000434271f63a053c4128a0ba6352c7f"), deep);  // VinDr-CXR
}

TEST_F(ImageFiles, TheIndexIsKeptAndFollowsTheFolder) {
  const fs::path one = make("a/one.jpg");
  EXPECT_EQ(ImageFinder(root().string()).find("one.jpg"), one);
  ASSERT_TRUE(fs::exists(index_file()));
  grow_old();
  ImageFinder(root().string()).find("nowhere.jpg");  // now the old folders are in the index

  // An index that says something else is believed as long as the file is there: nothing is read again.
  const fs::path two = make("b/two.jpg");
  grow_old();
  const std::string before = read_file(index_file());
  EXPECT_EQ(ImageFinder(root().string()).find("one.jpg"), one);
  EXPECT_EQ(read_file(index_file()), before);

  // A new file in a changed folder is found, and so is the loss of an old one.
  const fs::path three = make("a/three.jpg");
  EXPECT_EQ(ImageFinder(root().string()).find("three.jpg"), three);
  EXPECT_NE(read_file(index_file()), before);
  fs::remove(one);
  EXPECT_TRUE(ImageFinder(root().string()).find("one.jpg").empty());
  const fs::path moved = make("c/d/one.png");
  EXPECT_EQ(ImageFinder(root().string()).find("one.jpg"), moved);
  EXPECT_EQ(ImageFinder(root().string()).find("two.jpg"), two);
}

TEST_F(ImageFiles, ADamagedIndexIsMadeAgain) {
  const fs::path one = make("a/one.jpg");
  ImageFinder(root().string()).find("one.jpg");
  const std::string good = read_file(index_file());
  for (const std::string& bad : {std::string(), std::string("hello\n"), good.substr(0, good.size() / 2),
                                 good.substr(0, good.size() - 4), "thinkvg picture index 2\nDx y z\nend\n" + good}) {
    write_file_atomically(index_file(), bad);
    EXPECT_EQ(ImageFinder(root().string()).find("one.jpg"), one);
    EXPECT_EQ(read_file(index_file()).substr(0, 23), "thinkvg picture index 2");
  }
}

TEST_F(ImageFiles, LinksInCirclesEnd) {
  const fs::path one = make("a/b/one.jpg");
  fs::create_directory_symlink(root(), root() / "a/b/up");
  test::TemporaryFolder other;
  write_file_atomically(other / "linked.jpg", "x");
  fs::create_directory_symlink(other.path(), root() / "elsewhere");
  const ImageFinder finder(root().string());
  EXPECT_EQ(finder.find("one.jpg"), one);
  EXPECT_EQ(finder.find("linked.jpg"), root() / "elsewhere/linked.jpg");
}

TEST_F(ImageFiles, TheHitRateIsCountedOverRows) {
  make("a.jpg");
  const ImageFinder finder(root().string());
  const Rows rows({"p1/a.jpg", "p1/b.jpg", "p1/a.jpg", "p1/c.jpg", "p1/b.jpg", "p1/a.jpg"});
  const PictureCheck check = check_pictures(rows, finder);
  EXPECT_DOUBLE_EQ(check.hit_rate(), 0.5);
  EXPECT_EQ(check.num_pictures, 3);
  EXPECT_EQ(check.num_missing_pictures, 2);
  ASSERT_EQ(check.missing.size(), 3u);
  EXPECT_EQ(check.missing[1].index, 3);
  EXPECT_EQ(check.missing[1].id, "q3");
  EXPECT_EQ(check.missing[1].image, "p1/c.jpg");
  EXPECT_EQ(check.summary(), "3 of 6 rows have their picture (50.0 %; 1 of 3 files)");
  EXPECT_DOUBLE_EQ(check_pictures(Rows({}), finder).hit_rate(), 1.0);
}

TEST_F(ImageFiles, ARunRefusesToStartBelowTheRate) {
  make("a.jpg");
  const ImageFinder finder(root().string());
  const auto rows = std::make_shared<Rows>(std::vector<std::string>{"a.jpg", "b.jpg", "a.jpg", "a.jpg"});
  EXPECT_THAT([&] { with_pictures(rows, finder, 1.0); },
              ::testing::ThrowsMessage<std::runtime_error>(
                  AllOf(HasSubstr("3 of 4 rows"), HasSubstr("min_hit_rate is 1"), HasSubstr("row 1 (sample q1): b.jpg"),
                        HasSubstr(root().string()))));
  const auto present = with_pictures(rows, finder, 0.75);
  ASSERT_EQ(present->size(), 3);
  EXPECT_EQ(present->get(1).id, "q2");
  const auto whole = std::make_shared<Rows>(std::vector<std::string>{"a.jpg"});
  EXPECT_EQ(with_pictures(whole, finder, 1.0), whole);
  EXPECT_THROW(with_pictures(rows, finder, 1.5), std::invalid_argument);
}

TEST_F(ImageFiles, AMissingPictureNamesItsSample) {
  const ImageFinder finder(root().string());
  Sample sample;
  sample.id = "multi_choice/3";
  sample.image = "p10/x.jpg";
  EXPECT_THAT([&] { finder.require(sample); },
              ::testing::ThrowsMessage<std::runtime_error>(
                  AllOf(HasSubstr("sample multi_choice/3"), HasSubstr("p10/x.jpg"), HasSubstr(root().string()))));
}

}  // namespace
}  // namespace thinkvg::data
