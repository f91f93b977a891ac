// What a data set of the release's size costs: bench_dataset FOLDER [--check]
// Writes release.parquet into FOLDER where it is missing (202,384 rows over 21,994 pictures, texts as long as the
// release's), opens it in a process of its own, reads rows in order and at random, inspects it, and prints one line of
// JSON. --check leaves the inspection out, and fails where opening takes over 600 MB or, on a machine that may be busy,
// over 30 s.

#include <spdlog/fmt/fmt.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <string>

#include "data/parquet_table.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/dataset.h"
#include "thinkvg/data/inspect.h"

namespace {

using namespace thinkvg;

constexpr std::int64_t kRows = 202'384, kPictures = 21'994;

std::string box_text(RandomStream& random) {
  const std::int64_t x = random.between(0, 250), y = random.between(0, 250);
  return fmt::format("[{}, {}, {}, {}]", x, y, x + random.between(10, 86), y + random.between(10, 86));
}

std::string words(RandomStream& random, std::int64_t count) {
  constexpr std::array<const char*, 16> kWords = {"the",    "lung",   "opacity",  "shows", "is",   "no",
                                                  "clear",  "region", "pleural",  "with",  "left", "right",
                                                  "within", "heart",  "effusion", "normal"};
  std::string text;
  for (std::int64_t i = 0; i < count; ++i)
    text += (i == 0 ? "" : " ") + std::string(kWords[random.below(kWords.size())]);
  return text;
}

void write_release(const std::filesystem::path& file) {
  std::vector<std::pair<std::string, data::TextColumn>> columns;
  for (const char* name : {"image_path", "question", "question_type", "thinkVG", "response", "split"})
    columns.emplace_back(name, data::TextColumn());
  RandomStream random({20250617});
  for (std::int64_t row = 0; row < kRows; ++row) {
    const std::int64_t picture = row % kPictures, patient = 10'000'000 + picture / 3;
    const std::int64_t type = row % 4;
    columns[0].second.append(fmt::format("/p{}/p{}/s{}/{:08x}-{:08x}-{:08x}-{:08x}-{:08x}.jpg", patient / 1'000'000,
                                         patient, 50'000'000 + picture, picture * 2654435761 % 4294967296, picture,
                                         row % 7, patient, picture));
    std::string question = words(random, 14) + "?";
    if (type >= 2) question += " A: " + words(random, 4) + ", B: " + words(random, 4) + ", C: " + words(random, 4);
    columns[1].second.append(question);
    columns[2].second.append(std::array<const char*, 4>{"open_ended_questions", "closed_ended_questions",
                                                        "single_choice_questions",
                                                        "multi_choice_questions"}[static_cast<std::size_t>(type)]);
    columns[3].second.append(words(random, 45) + " (region " + box_text(random) + ") " + words(random, 50) +
                             " (region " + box_text(random) + ").");
    const std::string answer = type == 0 ? words(random, 12) : type == 1 ? "Yes." : type == 2 ? "B" : "['A', 'C']";
    columns[4].second.append("<response><answer>" + answer + "</answer><location><ref>right lung</ref><box>" +
                             box_text(random) + "</box></location></response>");
    columns[5].second.append("train");
  }
  data::write_text_columns(file.string() + ".partial", columns);
  std::filesystem::rename(file.string() + ".partial", file);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fputs("usage: bench_dataset FOLDER [--check]\n", stderr);
    return 2;
  }
  const bool check = argc > 2 && std::string_view(argv[2]) == "--check";
  const std::filesystem::path folder = argv[1], file = folder / "release.parquet";
  std::filesystem::create_directories(folder);
  if (!std::filesystem::exists(file)) {
    // In a process of its own, so that the memory of writing does not count.
    const pid_t child = fork();
    if (child == 0) {
      write_release(file);
      std::_Exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
      std::fputs("the file could not be written\n", stderr);
      return 1;
    }
  }
  auto start = std::chrono::steady_clock::now();
  const auto dataset = data::open_dataset(file);
  const double open_seconds = seconds_since(start);
  const double open_cpu_seconds = static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  const double open_megabytes = static_cast<double>(peak_memory_bytes()) / 1e6;

  start = std::chrono::steady_clock::now();
  std::size_t boxes = 0;
  for (std::int64_t i = 0; i < dataset->size(); ++i) boxes += dataset->get(i).regions.size();
  const double in_order = static_cast<double>(dataset->size()) / seconds_since(start);
  start = std::chrono::steady_clock::now();
  RandomStream random({1});
  constexpr int kRandom = 20'000;
  for (int i = 0; i < kRandom; ++i)
    boxes += dataset->get(static_cast<std::int64_t>(random.below(kRows))).regions.size();
  const double at_random = kRandom / seconds_since(start);

  const double reading_megabytes = static_cast<double>(peak_memory_bytes()) / 1e6;
  Json json = {{"rows", dataset->size()},
               {"bad_rows", dataset->bad_rows().size()},
               {"file_megabytes", static_cast<double>(std::filesystem::file_size(file)) / 1e6},
               {"open_seconds", open_seconds},
               {"open_cpu_seconds", open_cpu_seconds},
               {"open_megabytes", open_megabytes},
               {"rows_per_second_in_order", in_order},
               {"rows_per_second_at_random", at_random},
               {"reading_megabytes", reading_megabytes},
               {"boxes_read", boxes}};
  if (!check) {
    start = std::chrono::steady_clock::now();
    const data::Inspection inspection = data::inspect(*dataset, {});
    json["inspect_seconds_per_10000_rows"] = seconds_since(start) * 10'000 / static_cast<double>(dataset->size());
    json["inspect_megabytes"] = static_cast<double>(peak_memory_bytes()) / 1e6;
    json["inspect_problems"] = inspection.report["problems"].size();
  }
  std::fputs((json.dump() + "\n").c_str(), stdout);
  if (!check) return 0;
  if (dataset->size() != kRows || open_megabytes > 600 || open_seconds > 30) {
    std::fputs("expected all rows, at most 600 MB and 30 s\n", stderr);
    return 1;
  }
  return 0;
}
