#include "thinkvg/train/event_file.h"

#include <gmock/gmock.h>

#include <bit>
#include <cstring>

#include "tests/support/oracle.h"
#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"

namespace thinkvg::train {
namespace {

std::filesystem::path only_file(const std::filesystem::path& folder) {
  const std::filesystem::directory_iterator files(folder);
  return files->path();
}

// Known answers: what tensorboard.compat.proto and its RecordWriter write for the same summary.
TEST(EventFileTest, WritesTensorBoardsRecords) {
  const test::TemporaryFolder folder;
  EventFile events(folder.path(), 1);
  const auto before = std::filesystem::file_size(only_file(folder.path()));
  events.write(7, {{"loss", 0.5}});
  EXPECT_THAT(only_file(folder.path()).filename().string(), ::testing::StartsWith("events.out.tfevents."));
  const std::string record = read_file(only_file(folder.path())).substr(before);
  // Length 26, its checksum, then the event: wall time (9 bytes), step 7, summary with one value.
  const std::string head("\x1a\0\0\0\0\0\0\0", 8);
  EXPECT_EQ(record.substr(0, 8), head);
  const std::string event = record.substr(12, 26);
  EXPECT_EQ(event[0], '\x09');
  EXPECT_EQ(event.substr(9), std::string("\x10\x07\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\x3f", 17));
  EXPECT_EQ(record.size(), 8u + 4 + 26 + 4);
}

// Opens the file with the tensorboard package itself.
TEST(EventFileParity, TensorBoardReadsTheScalars) {
  const test::Oracle oracle = test::find_oracle("tensorboard");
  if (oracle.python.empty()) GTEST_SKIP() << oracle.reason;
  const test::TemporaryFolder folder;
  {
    EventFile events(folder.path(), 1);
    for (std::int64_t step = 1; step <= 5; ++step)
      events.write(step, {{"loss", 1.0 / static_cast<double>(step)}, {"lr", 1e-3}});
  }
  {
    EventFile events(folder.path(), 3);  // resumed behind step 2
    events.write(3, {{"loss", 9.0}, {"lr", 1e-3}});
  }
  const auto result =
      test::run_process({oracle.python, std::string(THINKVG_SOURCE_DIR) + "/tests/parity/open_in_tensorboard.py",
                         folder.path().string(), "1=1.0,2=0.5,3=9.0"});
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
}

}  // namespace
}  // namespace thinkvg::train
