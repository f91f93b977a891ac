#include "thinkvg/data/phantom.h"

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <thread>

#include "data/parquet_table.h"
#include "data/phantom_questions.h"
#include "data/phantom_render.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::data {
namespace {

namespace fs = std::filesystem;
using phantom::Question;
using phantom::Scene;

constexpr std::array<const char*, 3> kSplits = {"train", "dev", "test"};
constexpr std::size_t kTrain = 0, kTest = 2;
// Each in turn, so that fewer than four questions a picture are spread over the types, too.
constexpr std::array<QuestionType, 4> kTypeOrder = {QuestionType::closed, QuestionType::single_choice,
                                                    QuestionType::multi_choice, QuestionType::open};
constexpr std::uint64_t kIdPrime = 9999991;

struct PlannedPicture {
  std::size_t split = 0;
  std::string path;  // p10/p10000032/s50414267/<dicom_id>.jpg
  Scene scene;
  std::vector<Question> questions;
};

// The n-th number of a sequence without repetition over seven digits.
std::uint64_t unique_number(std::uint64_t n, std::uint64_t seed, std::string_view what) {
  RandomStream random({seed, hash_key(what)});
  const std::uint64_t factor = 1 + random.below(kIdPrime - 1);
  return (n + 1) % kIdPrime * factor % kIdPrime;
}

std::string make_path(const phantom::SceneKey& key) {
  const std::uint64_t patient = 3 * key.patient + key.split;
  const std::string subject = fmt::format("p{}", 10000000 + unique_number(patient, key.seed, "phantom patient ids"));
  const std::uint64_t study = 50000000 + unique_number(3 * patient + key.study, key.seed, "phantom study ids");
  RandomStream random({key.seed, hash_key("phantom picture ids"), key.split, key.patient, key.study});
  std::array<std::uint32_t, 5> id{};
  for (std::uint32_t& part : id) part = random.next_u32();
  return fmt::format("{}/{}/s{}/{:08x}-{:08x}-{:08x}-{:08x}-{:08x}.jpg", subject.substr(0, 3), subject, study, id[0],
                     id[1], id[2], id[3], id[4]);
}

struct Plan {
  std::vector<PlannedPicture> pictures;  // by split
  std::array<std::int64_t, 3> num_patients{};
};

Plan make_plan(const PhantomOptions& options, const std::array<std::int64_t, 3>& num_images) {
  Plan plan;
  const auto seed = static_cast<std::uint64_t>(options.seed);
  for (std::size_t split = 0; split < kSplits.size(); ++split) {
    phantom::Questioner questioner(options.box_grid);
    std::int64_t in_split = 0;
    for (std::uint64_t patient = 0; in_split < num_images[split]; ++patient) {
      ++plan.num_patients[split];
      RandomStream random({seed, hash_key("phantom studies"), split, patient});
      const std::int64_t num_studies = random.between(1, 3);
      for (std::int64_t study = 0; study < num_studies && in_split < num_images[split]; ++study, ++in_split) {
        const phantom::SceneKey key{seed, split, patient, static_cast<std::uint64_t>(study)};
        PlannedPicture picture{split, make_path(key), phantom::make_scene(key, options.longest_side), {}};
        RandomStream asking({seed, hash_key("phantom questions"), split, patient, static_cast<std::uint64_t>(study)});
        std::vector<std::string> asked;
        for (std::int64_t q = 0; q < options.questions_per_image; ++q) {
          const auto type = kTypeOrder[static_cast<std::size_t>((in_split + q) % 4)];
          Question question = questioner.ask(picture.scene, type, asking, asked);
          if (question.text.empty()) continue;
          asked.push_back(question.text);
          picture.questions.push_back(std::move(question));
        }
        plan.pictures.push_back(std::move(picture));
      }
    }
  }
  return plan;
}

// Pictures are many and can be drawn again: they are not synced one by one.
void write_plain(const fs::path& file, std::string_view content) {
  std::ofstream stream(file, std::ios::binary | std::ios::trunc);
  stream.write(content.data(), static_cast<std::streamsize>(content.size()));
  stream.close();
  if (!stream) throw_failure("cannot write {} ({} bytes): is the disk full?", file.string(), content.size());
}

void draw_pictures(const Plan& plan, const PhantomOptions& options, const fs::path& folder,
                   const std::function<void(std::int64_t, std::int64_t)>& on_progress) {
  const auto total = static_cast<std::int64_t>(plan.pictures.size());
  const std::int64_t wanted =
      options.threads > 0 ? options.threads : std::max<std::int64_t>(1, std::thread::hardware_concurrency());
  std::atomic<std::int64_t> next{0}, done{0}, running{0};
  std::mutex mutex;
  std::condition_variable changed;
  std::exception_ptr failure;
  std::vector<std::thread> threads;
  const auto work = [&] {
    try {
      for (std::int64_t i = next++; i < total; i = next++) {
        const PlannedPicture& picture = plan.pictures[static_cast<std::size_t>(i)];
        const fs::path file = folder / "files" / picture.path;
        fs::create_directories(file.parent_path());
        write_plain(file, image::encode_jpeg(phantom::render(picture.scene)));
        ++done;
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = total;
    }
    const std::lock_guard lock(mutex);
    --running;
    changed.notify_one();
  };
  const std::int64_t num_threads = std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(1, total));
  running = num_threads;
  for (std::int64_t t = 0; t < num_threads; ++t) threads.emplace_back(work);
  {
    std::unique_lock lock(mutex);
    while (running > 0) {
      changed.wait_for(lock, std::chrono::milliseconds(200));
      if (!on_progress) continue;
      lock.unlock();
      // An exception out of the callback must not leave threads behind.
      try {
        on_progress(done, total);
      } catch (...) {
        next = total;
        for (std::thread& thread : threads) thread.join();
        throw;
      }
      lock.lock();
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

void write_parquet(const Plan& plan, std::size_t split, const fs::path& file) {
  std::vector<std::pair<std::string, TextColumn>> columns;
  for (const char* name : {"image_path", "question", "question_type", "thinkVG", "response", "split"}) {
    columns.emplace_back(name, TextColumn());
  }
  static constexpr std::array<std::string_view, 4> kReleaseTypes = {
      "open_ended_questions", "closed_ended_questions", "single_choice_questions", "multi_choice_questions"};
  for (const PlannedPicture& picture : plan.pictures) {
    if (picture.split != split) continue;
    for (const Question& question : picture.questions) {
      const std::array<std::string, 6> row = {"/" + picture.path,
                                              question.full_text(),
                                              std::string(kReleaseTypes[static_cast<std::size_t>(question.type)]),
                                              question.think,
                                              grounding::format_response(question.answer, question.regions),
                                              kSplits[split]};
      for (std::size_t c = 0; c < row.size(); ++c) columns[c].second.append(row[c]);
    }
  }
  write_text_columns(file, columns);
}

Json number(double value) {
  const double whole = std::round(value);
  if (std::abs(value - whole) < 1e-9) return static_cast<std::int64_t>(whole);
  return value;
}

Json box_json(const grounding::Box& box) {
  return Json::array({number(box.x1), number(box.y1), number(box.x2), number(box.y2)});
}

// "The right lower lung zone (region [..]) shows" without the brackets: GEMeX keeps regions out of its reasons.
std::string without_regions(std::string text) {
  for (std::size_t at = text.find(" (region ["); at != std::string::npos; at = text.find(" (region [", at)) {
    const std::size_t end = text.find(')', at);
    if (end == std::string::npos) break;
    text.erase(at, end + 1 - at);
  }
  return text;
}

void write_gemex(const Plan& plan, const fs::path& folder) {
  static constexpr std::array<std::string_view, 4> kFiles = {"open_ended_question.jsonl", "closed_ended_question.jsonl",
                                                             "single_choice_question.jsonl",
                                                             "multi_choice_question.jsonl"};
  std::array<std::string, 4> texts;
  std::array<std::int64_t, 4> q_ids{};
  std::int64_t row_id = 0;
  for (const PlannedPicture& picture : plan.pictures) {
    if (picture.split != kTest) continue;
    const grounding::ImageGeometry geometry(picture.scene.size);
    const std::string report = phantom::report_text(picture.scene);
    for (const Question& question : picture.questions) {
      const auto type = static_cast<std::size_t>(question.type);
      Json row;
      row["question"] = question.text;
      if (!question.choices.empty()) row["choices"] = question.choices;
      row["type"] = question.content_type;
      if (question.type == QuestionType::multi_choice) {
        Json letters = Json::array();
        for (std::size_t i = 0; i < question.answer.size(); i += 3) letters.push_back(question.answer.substr(i, 1));
        row["answer"] = letters;
      } else {
        row["answer"] = question.answer;
      }
      row["reason"] = without_regions(question.think);
      row["visual_regions"] = Json::array();
      row["visual_locations"] = Json::array();
      for (const grounding::Region& region : question.regions) {
        row["visual_regions"].push_back(region.name);
        row["visual_locations"].push_back(box_json(geometry.convert(region.box, grounding::BoxFrame::letterbox(224))));
      }
      row["image_path"] = picture.path;
      row["ori_report"] = report;
      row["q_id"] = q_ids[type]++;
      row["row_id"] = row_id++;
      texts[type] += row.dump() + "\n";
    }
  }
  for (std::size_t type = 0; type < texts.size(); ++type) write_plain(folder / kFiles[type], texts[type]);
}

void write_annotations(const Plan& plan, const fs::path& file) {
  std::string text;
  for (const PlannedPicture& picture : plan.pictures) {
    Json row;
    row["image_path"] = picture.path;
    row["split"] = kSplits[picture.split];
    row["width"] = picture.scene.size.width;
    row["height"] = picture.scene.size.height;
    Json items = Json::array();
    const auto add = [&](std::string_view name, std::string_view kind, std::string_view zone,
                         const grounding::Box& box) {
      if (!box.is_valid()) return;
      Json corners = Json::array();
      for (const double value : {box.x1, box.y1, box.x2, box.y2})
        corners.push_back(number(std::round(value * 10) / 10));
      items.push_back({{"name", name}, {"kind", kind}, {"zone", zone}, {"box", corners}});
    };
    for (const phantom::Finding& finding : picture.scene.findings) {
      add(phantom::kind_name(finding.kind), "finding", phantom::place_name(finding.place), finding.box);
    }
    for (std::size_t place = 0; place < phantom::kNumPlaces; ++place) {
      add(phantom::place_name(static_cast<phantom::Place>(place)), "region", "", picture.scene.regions[place]);
    }
    row["items"] = std::move(items);
    text += row.dump() + "\n";
  }
  write_plain(file, text);
}

using Counts = std::map<std::string, std::int64_t>;

std::pair<std::string, std::int64_t> most_frequent(const Counts& counts) {
  std::pair<std::string, std::int64_t> best{"", 0};
  for (const auto& [key, count] : counts) {
    if (count > best.second) best = {key, count};
  }
  return best;
}

// What a reader of the text alone would answer after seeing train.
bool guessed_by_text(const Question& question, const std::map<std::string, Counts>& train) {
  const auto known = train.find(question.text);
  if (known == train.end()) return false;
  if (question.type != QuestionType::single_choice) return most_frequent(known->second).first == question.content;
  Counts offered;
  for (const std::string& choice : question.choices) {
    const auto count = known->second.find(choice.substr(3));
    if (count != known->second.end()) offered.insert(*count);
  }
  return most_frequent(offered).first == question.content;
}

PhantomReport make_report(const Plan& plan) {
  PhantomReport report;
  std::map<std::string, Counts> train;
  for (const PlannedPicture& picture : plan.pictures) {
    if (picture.split != kTrain) continue;
    for (const Question& question : picture.questions) ++train[question.text][question.content];
  }
  struct Group {
    Counts answers;
    std::int64_t guessed = 0;
    std::int64_t total = 0;
  };
  const auto to_guess = [](std::string split, QuestionType type, std::string pattern, const Group& group) {
    const auto [answer, count] = most_frequent(group.answers);
    const auto total = static_cast<double>(std::max<std::int64_t>(1, group.total));
    return PhantomGuess{std::move(split),
                        question_type_name(type),
                        std::move(pattern),
                        group.total,
                        answer,
                        static_cast<double>(count) / total,
                        static_cast<double>(group.guessed) / total};
  };
  for (std::size_t split = 0; split < kSplits.size(); ++split) {
    PhantomSplit summary{kSplits[split], 0, plan.num_patients[split], 0};
    std::map<QuestionType, Group> by_type;
    std::map<std::pair<QuestionType, std::string>, Group> by_pattern;
    for (const PlannedPicture& picture : plan.pictures) {
      if (picture.split != split) continue;
      ++summary.num_images;
      for (const Question& question : picture.questions) {
        ++summary.num_questions;
        for (Group* group : {&by_type[question.type], &by_pattern[{question.type, question.pattern}]}) {
          ++group->answers[question.answer];
          ++group->total;
          if (guessed_by_text(question, train)) ++group->guessed;
        }
      }
    }
    for (const auto& [type, group] : by_type) report.types.push_back(to_guess(kSplits[split], type, "", group));
    if (by_pattern.empty()) {
      report.splits.push_back(summary);
      continue;
    }
    // The last split with questions stays: test, unless there is none.
    report.patterns.clear();
    for (const auto& [key, group] : by_pattern) {
      report.patterns.push_back(to_guess(kSplits[split], key.first, key.second, group));
    }
    report.splits.push_back(summary);
  }
  return report;
}

std::array<std::int64_t, 3> check_options(const PhantomOptions& options) {
  const auto in_range = [](std::string_view name, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value < low || value > high) throw_invalid("{} is {} to {}, not {}", name, low, high, value);
  };
  if (options.out.empty()) throw_invalid("phantom needs a folder to write: give out");
  in_range("num_images", options.num_images, 1, 1000000);
  in_range("seed", options.seed, 0, std::numeric_limits<std::int64_t>::max());
  in_range("questions_per_image", options.questions_per_image, 1, 16);
  in_range("box_grid", options.box_grid, 1, 24);
  in_range("longest_side", options.longest_side, 64, 4096);
  in_range("threads", options.threads, 0, 1024);
  in_range("num_dev", options.num_dev, -1, options.num_images);
  in_range("num_test", options.num_test, -1, options.num_images);
  const auto share = [&](std::string_view name, std::int64_t count, double fraction) {
    if (!(fraction >= 0 && fraction <= 1)) throw_invalid("{} is between 0 and 1, not {}", name, fraction);
    return count >= 0 ? count : std::llround(fraction * static_cast<double>(options.num_images));
  };
  const std::int64_t dev = share("dev_fraction", options.num_dev, options.dev_fraction);
  const std::int64_t test = share("test_fraction", options.num_test, options.test_fraction);
  if (dev + test > options.num_images) {
    throw_invalid("dev ({}) and test ({}) take more than the {} pictures of num_images", dev, test, options.num_images);
  }
  return {options.num_images - dev - test, dev, test};
}

void check_folder(const fs::path& folder) {
  if (!fs::exists(folder)) return;
  if (!fs::is_directory(folder)) throw_invalid("{} is a file; give a folder to write the phantom to", folder.string());
  if (!fs::is_empty(folder) && !fs::exists(folder / "phantom.json")) {
    throw_invalid("{} holds something other than a phantom data set; give a new or empty folder", folder.string());
  }
}

// As write_folder_atomically, but without a sync of each file: ten thousand of them take longer than the drawing.
void replace_folder(const fs::path& folder, const std::function<void(const fs::path&)>& fill) {
  const fs::path temporary = folder.string() + fmt::format(".partial-{}", getpid());
  const fs::path old = temporary.string() + "-old";
  std::error_code ignored;
  fs::remove_all(temporary, ignored);
  try {
    fs::create_directories(temporary);
    fill(temporary);
    if (fs::exists(folder)) fs::rename(folder, old);
    fs::rename(temporary, folder);
  } catch (const fs::filesystem_error& error) {
    if (!fs::exists(folder) && fs::exists(old)) fs::rename(old, folder, ignored);
    fs::remove_all(temporary, ignored);
    throw_failure("cannot write the phantom to {}: {}", folder.string(), error.what());
  } catch (...) {
    fs::remove_all(temporary, ignored);
    throw;
  }
  fs::remove_all(old, ignored);
}

Json guesses_json(const std::vector<PhantomGuess>& guesses) {
  Json list = Json::array();
  const auto rounded = [](double value) { return std::round(value * 1e4) / 1e4; };
  for (const PhantomGuess& guess : guesses) {
    Json row;
    row["split"] = guess.split;
    row["type"] = guess.type;
    if (!guess.pattern.empty()) row["pattern"] = guess.pattern;
    row["num_questions"] = guess.num_questions;
    row["majority_answer"] = guess.majority_answer;
    row["majority_rate"] = rounded(guess.majority_rate);
    row["text_rate"] = rounded(guess.text_rate);
    list.push_back(std::move(row));
  }
  return list;
}

}  // namespace

Json PhantomReport::to_json() const {
  Json json;
  json["splits"] = Json::array();
  for (const PhantomSplit& split : splits) {
    json["splits"].push_back({{"name", split.name},
                              {"num_images", split.num_images},
                              {"num_patients", split.num_patients},
                              {"num_questions", split.num_questions}});
  }
  json["types"] = guesses_json(types);
  json["patterns"] = guesses_json(patterns);
  return json;
}

std::string PhantomReport::table() const {
  std::string text = fmt::format("{:<8}{:>10}{:>10}{:>11}\n", "split", "pictures", "patients", "questions");
  for (const PhantomSplit& split : splits) {
    text += fmt::format("{:<8}{:>10}{:>10}{:>11}\n", split.name, format_count(split.num_images),
                        format_count(split.num_patients), format_count(split.num_questions));
  }
  text +=
      "\nRight answers without the picture: the most frequent answer; each question text's most frequent in train\n";
  text += fmt::format("{:<8}{:<15}{:>10}{:>10}{:>10}  {}\n", "split", "type", "questions", "majority", "by text",
                      "most frequent answer");
  for (const PhantomGuess& guess : types) {
    text += fmt::format("{:<8}{:<15}{:>10}{:>10.3f}{:>10.3f}  {}\n", guess.split, guess.type,
                        format_count(guess.num_questions), guess.majority_rate, guess.text_rate, guess.majority_answer);
  }
  text += fmt::format("\n{:<8}{:<15}{:<40}{:>10}{:>10}{:>10}\n", "split", "type", "question", "questions", "majority",
                      "by text");
  for (const PhantomGuess& guess : patterns) {
    text += fmt::format("{:<8}{:<15}{:<40}{:>10}{:>10.3f}{:>10.3f}\n", guess.split, guess.type, guess.pattern,
                        format_count(guess.num_questions), guess.majority_rate, guess.text_rate);
  }
  return text;
}

PhantomReport write_phantom(const PhantomOptions& options,
                            const std::function<void(std::int64_t, std::int64_t)>& on_progress) {
  const std::array<std::int64_t, 3> num_images = check_options(options);
  fs::path folder = fs::absolute(options.out).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  check_folder(folder);
  const Plan plan = make_plan(options, num_images);
  PhantomReport report = make_report(plan);

  const auto fill = [&](const fs::path& out) {
    fs::create_directories(out / "data");
    fs::create_directories(out / "gemex_test");
    draw_pictures(plan, options, out, on_progress);
    for (std::size_t split = 0; split < kSplits.size(); ++split) {
      write_parquet(plan, split, out / "data" / fmt::format("{}.parquet", kSplits[split]));
    }
    write_gemex(plan, out / "gemex_test");
    write_annotations(plan, out / "annotations.jsonl");
    Json settings = settings_to_json(options);
    settings.erase("out");
    settings.erase("threads");
    Json summary;
    summary["settings"] = std::move(settings);
    summary["box_frame"] = "letterbox-336";
    summary["statistics"] = report.to_json();
    write_file_atomically(out / "phantom.json", summary.dump(2) + "\n");
  };
  replace_folder(folder, fill);
  return report;
}

}  // namespace thinkvg::data
