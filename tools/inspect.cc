#include "thinkvg/data/inspect.h"

#include <spdlog/fmt/fmt.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <filesystem>
#include <optional>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/progress.h"
#include "tools/commands.h"

namespace thinkvg::tools {

int run_inspect(const Arguments& arguments) {
  data::InspectOptions options;
  if (!parse_options("inspect",
                     "Look a data set over before training: bad rows, missing pictures, boxes in a wrong frame.",
                     arguments, options))
    return 0;
  require_setting("inspect", "data", options.data, "FILE");
  const auto dataset = data::open_dataset(options.data, {.format = options.format, .frame = options.frame});
  if (options.format.empty()) options.format = data::detect_format(options.data);
  if (!options.unpack.empty()) {
    const std::int64_t count = data::unpack_pictures(*dataset, options.unpack);
    spdlog::info("{} pictures are in {}", count, options.unpack);
    if (options.images.empty()) options.images = options.unpack;
  }
  std::optional<Progress> progress;
  std::string stage;
  const auto on_progress = [&](const char* what, std::int64_t done, std::int64_t total) {
    if (stage != what) {
      progress.emplace("inspect", total);
      stage = what;
    }
    progress->update(done, what);
  };
  const data::Inspection inspection = data::inspect(*dataset, options, on_progress);
  progress.reset();
  const std::string json = inspection.report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!options.out.empty()) {
    const std::filesystem::path folder = options.out;
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) throw_failure("cannot make the folder {}: {}", folder.string(), error.message());
    write_file_atomically(folder / "inspect.json", json);
    write_file_atomically(folder / "inspect.html", data::inspection_html(inspection, *dataset, options));
    spdlog::info("wrote {} and inspect.json", (folder / "inspect.html").string());
  }
  if (!options.fix.empty()) {
    const data::FixResult fixed = data::write_fixed(*dataset, options.fix);
    spdlog::info("wrote {}: {} rows as they were, {} mended, {} left out; every change is in {}", options.fix,
                 fixed.num_kept, fixed.num_mended, fixed.num_dropped, fixed.log.string());
  }
  std::fputs(options.json ? json.c_str() : data::inspection_summary(inspection).c_str(), stdout);
  return 0;
}

}  // namespace thinkvg::tools
