// Pictures a second through read, decode, resize and patches, and where the time goes. pictures.py builds on it and
// runs the peer on the same files; alone: bench_pictures FOLDER [--threads N] [--passes N] [--max_pixels N] [--pad]
// [--reduced]. Prints one JSON document; `sha256` are the patches of the first picture, so that both sides can be seen
// to do the same work.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/image/patches.h"
#include "thinkvg/image/picture_store.h"
#include "thinkvg/image/resize.h"

namespace {

using namespace thinkvg;
using Clock = std::chrono::steady_clock;

struct Settings {
  std::int64_t threads = 1, passes = 1, max_pixels = 1003520;
  bool pad = false, reduced = false;
};

struct Stages {
  double read = 0, prepare = 0, cut = 0;  // prepare: decode and resize, which go together
};

// Seconds since the last call.
class Lap {
 public:
  double operator()() {
    const auto now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  Clock::time_point last_ = Clock::now();
};

image::PatchOptions clip_patches() {
  image::PatchOptions options;
  options.mean = {0.48145466f * 255, 0.4578275f * 255, 0.40821073f * 255};
  options.deviation = {0.26862954f * 255, 0.26130258f * 255, 0.27577711f * 255};
  return options;
}

struct Worked {
  image::PatchValues patches;
  Stages stages;
};

Worked one_picture(const std::filesystem::path& file, const Settings& settings) {
  Worked worked;
  Lap lap;
  const std::string encoded = read_file(file);
  worked.stages.read = lap();
  image::ResizeRule rule;
  rule.target = [&](grounding::ImageSize size) {
    if (settings.pad) size.width = size.height = std::max(size.width, size.height);
    return image::smart_resize(size, {28, 3136, settings.max_pixels});
  };
  rule.pad_to_square = settings.pad;
  image::PictureStoreOptions options;
  options.reduced_jpeg = settings.reduced;
  const image::PreparedPicture prepared = image::prepare_picture(encoded, file.string(), rule, options);
  worked.stages.prepare = lap();
  worked.patches = image::cut_patches(prepared.pixels, clip_patches());
  worked.stages.cut = lap();
  return worked;
}

Settings parse(const std::vector<std::string>& flags) {
  Settings settings;
  for (std::size_t i = 0; i < flags.size(); ++i) {
    const auto number = [&] {
      if (i + 1 == flags.size()) throw_invalid("{} needs a number", flags[i]);
      return std::stoll(flags[++i]);
    };
    if (flags[i] == "--threads")
      settings.threads = number();
    else if (flags[i] == "--passes")
      settings.passes = number();
    else if (flags[i] == "--max_pixels")
      settings.max_pixels = number();
    else if (flags[i] == "--pad")
      settings.pad = true;
    else if (flags[i] == "--reduced")
      settings.reduced = true;
    else
      throw_invalid("unknown flag {}", flags[i]);
  }
  return settings;
}

Json measure(const std::filesystem::path& folder, const Settings& settings) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  if (files.empty()) throw_failure("{} holds no pictures", folder.string());

  const Worked first = one_picture(files.front(), settings);  // also warms the page cache of the library up
  const std::string sha256 =
      sha256_text({reinterpret_cast<const char*>(first.patches.values.get()),
                   static_cast<std::size_t>(first.patches.rows * first.patches.columns) * sizeof(float)});
  const auto count = static_cast<std::int64_t>(files.size()) * settings.passes;
  std::atomic<std::int64_t> next{0};
  std::vector<Stages> stages(static_cast<std::size_t>(settings.threads));
  Lap lap;
  {
    std::vector<std::jthread> threads;
    for (Stages& own : stages) {
      threads.emplace_back([&] {
        for (std::int64_t i = next++; i < count; i = next++) {
          const Stages took = one_picture(files[static_cast<std::size_t>(i) % files.size()], settings).stages;
          own.read += took.read;
          own.prepare += took.prepare;
          own.cut += took.cut;
        }
      });
    }
  }
  const double seconds = lap();
  Stages sum;
  for (const Stages& own : stages) {
    sum.read += own.read;
    sum.prepare += own.prepare;
    sum.cut += own.cut;
  }
  const auto each = [&](double value) { return 1000 * value / static_cast<double>(count); };
  return {{"pictures", count},
          {"threads", settings.threads},
          {"pictures_per_second", static_cast<double>(count) / seconds},
          {"milliseconds", {{"read", each(sum.read)}, {"prepare", each(sum.prepare)}, {"cut", each(sum.cut)}}},
          {"rows", first.patches.rows},
          {"sha256", sha256}};
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 2) throw_invalid("usage: bench_pictures FOLDER [--threads N] [--passes N] [--max_pixels N] [--pad]");
    std::cout << measure(argv[1], parse({argv + 2, argv + argc})).dump(2) << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "bench_pictures: " << error.what() << "\n";
    return 1;
  }
}
