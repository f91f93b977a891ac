#include "thinkvg/core/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <fstream>
#include <set>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/error.h"

namespace thinkvg {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;
using testing::AllOf;
using testing::HasSubstr;

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

template <class Action>
std::string failure_of(Action action) {
  try {
    action();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "no error";
}

// While it lives, no file of this process can grow over `bytes`: writes stop half way as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    signal_before_ = ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, signal_before_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
  void (*signal_before_)(int) = nullptr;
};

TEST(ReadFile, GivesAllBytes) {
  const TemporaryFolder folder;
  const std::string content("a\0b\r\n\xff", 6);
  write_file_atomically(folder / "a", content);
  EXPECT_EQ(read_file(folder / "a"), content);
}

TEST(ReadFile, NamesFileAndReason) {
  const TemporaryFolder folder;
  EXPECT_THAT(failure_of([&] { read_file(folder / "missing"); }),
              AllOf(HasSubstr("missing"), HasSubstr("No such file")));
  EXPECT_THAT(failure_of([&] { read_file(folder.path()); }), HasSubstr("it is a folder"));
}

TEST(WriteFile, ReplacesTheOldFileAndLeavesNothingElse) {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a", "old");
  write_file_atomically(folder / "a", "new");
  EXPECT_EQ(read_file(folder / "a"), "new");
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"a"});
}

TEST(WriteFile, KeepsTheOldFileWhereTheNewOneDoesNotFit) {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a", "old");
  const std::string error = [&] {
    const FileSizeLimit limit(4096);
    return failure_of([&] { write_file_atomically(folder / "a", std::string(100000, 'x')); });
  }();
  EXPECT_THAT(error, AllOf(HasSubstr("cannot write"), HasSubstr("/a:"), HasSubstr("File too large")));
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"a"});
}

TEST(WriteFile, NamesAFolderThatIsNotThere) {
  const TemporaryFolder folder;
  EXPECT_THAT(failure_of([&] { write_file_atomically(folder.path() / "no" / "a", "x"); }),
              AllOf(HasSubstr("no/a"), HasSubstr("No such file")));
  fs::create_directory(folder / "b");
  EXPECT_THAT(failure_of([&] { write_file_atomically(folder / "b", "x"); }), HasSubstr("Is a directory"));
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"b"});
}

TEST(WriteFolder, AppearsWhole) {
  const TemporaryFolder folder;
  const fs::path target = folder / "step-1";
  write_folder_atomically(target, [&](const fs::path& temporary) {
    EXPECT_FALSE(fs::exists(target));
    fs::create_directory(temporary / "trainer");
    write_file_atomically(temporary / "trainer" / "state", "s");
    write_file_atomically(temporary / "weights", "w");
  });
  EXPECT_EQ(read_file(target / "trainer" / "state"), "s");
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"step-1"});
}

TEST(WriteFolder, TakesANameWithASlashAtItsEnd) {
  const TemporaryFolder folder;
  for (const char* content : {"1", "2"})
    write_folder_atomically(folder.path() / "a" / "b/",
                            [&](const fs::path& temporary) { write_file_atomically(temporary / "c", content); });
  EXPECT_EQ(names_in(folder / "a"), std::set<std::string>{"b"});
  EXPECT_EQ(names_in(folder.path() / "a" / "b"), std::set<std::string>{"c"});
  EXPECT_EQ(read_file(folder.path() / "a" / "b" / "c"), "2");
}

TEST(WriteFolder, ReplacesTheWholeOldFolder) {
  const TemporaryFolder folder;
  for (const char* name : {"first", "second"})
    write_folder_atomically(folder / "out",
                            [&](const fs::path& temporary) { write_file_atomically(temporary / name, name); });
  EXPECT_EQ(names_in(folder / "out"), std::set<std::string>{"second"});
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"out"});
}

TEST(WriteFolder, LeavesTheOldFolderWhereFillingFails) {
  const TemporaryFolder folder;
  write_folder_atomically(folder / "out",
                          [&](const fs::path& temporary) { write_file_atomically(temporary / "a", "old"); });
  const std::string error = [&] {
    const FileSizeLimit limit(4096);
    return failure_of([&] {
      write_folder_atomically(folder / "out", [&](const fs::path& temporary) {
        write_file_atomically(temporary / "a", "new");
        write_file_atomically(temporary / "weights", std::string(100000, 'x'));
      });
    });
  }();
  EXPECT_THAT(error, HasSubstr("cannot write"));
  EXPECT_EQ(read_file(folder / "out" / "a"), "old");
  EXPECT_EQ(names_in(folder / "out"), std::set<std::string>{"a"});
  EXPECT_EQ(names_in(folder.path()), std::set<std::string>{"out"});
}

TEST(AppendFile, AddsToWhatIsThere) {
  const TemporaryFolder folder;
  { AppendFile(folder / "log").write_line("one"); }
  AppendFile file(folder / "log");
  file.write("two");
  file.write_line("");
  EXPECT_EQ(read_file(folder / "log"), "one\ntwo\n");
}

TEST(AppendFile, NeverEndsInHalfALine) {
  const TemporaryFolder folder;
  AppendFile file(folder / "log");
  file.write_line("whole");
  const std::string error = [&] {
    const FileSizeLimit limit(4096);
    return failure_of([&] { file.write_line(std::string(5000, 'x')); });
  }();
  EXPECT_THAT(error, AllOf(HasSubstr("log"), HasSubstr("File too large")));
  EXPECT_EQ(read_file(folder / "log"), "whole\n");
  file.write_line("next");
  EXPECT_EQ(read_file(folder / "log"), "whole\nnext\n");
}

TEST(AppendFile, SaysThatTheDiskIsFull) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  AppendFile file("/dev/full");
  EXPECT_THAT(failure_of([&] { file.write_line("x"); }), AllOf(HasSubstr("/dev/full"), HasSubstr("No space left")));
}

TEST(Sha256, GivesThePublishedDigests) {
  EXPECT_EQ(sha256_text("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_text(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  const TemporaryFolder folder;
  const std::string large((1 << 20) + 17, 'q');
  write_file_atomically(folder / "large", large);
  EXPECT_EQ(sha256_file(folder / "large"), sha256_text(large));
  EXPECT_THROW(sha256_file(folder / "missing"), std::runtime_error);
  EXPECT_THROW(sha256_file(folder.path()), std::runtime_error);
}

TEST(PeakMemory, GrowsWithUse) {
  const std::int64_t before = peak_memory_bytes();
  EXPECT_GT(before, 1 << 20);
  std::vector<char> block(static_cast<std::size_t>(before) + (64 << 20), 1);
  EXPECT_GT(peak_memory_bytes(), before + (32 << 20)) << block.back();
}

// The child is this program once more, started from a process that holds half a gigabyte.
TEST(PeakMemoryDeathTest, StartsAnewWithEachProgram) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const bool starts_it = !testing::internal::InDeathTestChild();
  const std::vector<char> block(starts_it ? std::size_t{512} << 20 : 0, 1);
  EXPECT_EXIT(std::_Exit(peak_memory_bytes() < (256 << 20) ? 0 : 1), testing::ExitedWithCode(0), "") << block.size();
}

TEST(Files, ReadsFilesOfUnknownSize) {
  EXPECT_EQ(read_file("/dev/null"), "");
  // Files of /proc say that they are empty.
  const std::string status = read_file("/proc/self/status");
  EXPECT_EQ(status.substr(0, 5), "Name:");
  EXPECT_EQ(status.back(), '\n');
  EXPECT_THROW(read_file("/proc/self/no_such_file"), std::runtime_error);
}

}  // namespace
}  // namespace thinkvg
