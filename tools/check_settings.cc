// The part of `check` that needs no tensors: the settings. It goes on in thinkvg-tensors where a model is named.
#include <spdlog/fmt/fmt.h>

#include <charconv>
#include <optional>

#include "thinkvg/core/error.h"
#include "thinkvg/rl/grpo.h"
#include "thinkvg/train/sft.h"
#include "tools/check.h"
#include "tools/commands.h"

namespace thinkvg::tools {
namespace {

constexpr const char* kSummary = "what a run would do: settings, data, an example, parameters, memory";

// Returns the exit code, or nothing where a model has to be looked at.
template <class Options>
std::optional<int> check_settings(const std::string& command, const Arguments& arguments) {
  Checked<Options> options;
  if (!parse_options("check " + command, kSummary, arguments, options)) return 0;
  if (!options.run.model.empty()) return std::nullopt;
  options.run.check();
  const Json settings = settings_to_json(options.run);
  if (options.check.json)
    fmt::print("{}\n", Json{{"command", command}, {"settings", settings}, {"problems", Json::array()}}.dump(2));
  else
    fmt::print(
        "{}\nThe settings are sound. With --model, --data and --images the data, an example, the parameters and "
        "a memory plan follow.\n",
        to_yaml(settings));
  return 0;
}

}  // namespace

std::string take_checked_command(Arguments& arguments) {
  if (!arguments.empty() && (arguments.front() == "sft" || arguments.front() == "grpo")) {
    std::string command = arguments.front();
    arguments.erase(arguments.begin());
    return command;
  }
  throw_invalid("needs the command to check: thinkvg check sft --config run.yaml, or thinkvg check grpo ..");
}

std::int64_t parse_bytes(const std::string& text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string unit(end, text.data() + text.size());
  const int shift = unit.empty() || unit == "G" || unit == "GB" || unit == "GiB" ? 30
                    : unit == "M" || unit == "MB" || unit == "MiB"               ? 20
                    : unit == "T" || unit == "TB" || unit == "TiB"               ? 40
                                                                                 : 0;
  if (error != std::errc() || shift == 0 || !(number > 0))
    throw_invalid("device_memory should be a size such as 80G or 24000M, but is '{}'", text);
  return static_cast<std::int64_t>(number * static_cast<double>(std::int64_t{1} << shift));
}

int run_check_settings(const Arguments& given) {
  Arguments arguments = given;
  if (!arguments.empty() && (arguments.front() == "--help" || arguments.front() == "-h")) {
    fmt::print(
        "thinkvg check: {}\n\nusage: thinkvg check sft|grpo [--config run.yaml] [--setting value ...]\n\n"
        "Takes the settings of the command, and --world_size N, --device_memory SIZE, --check_questions N, "
        "--json;\n'thinkvg check sft --help' lists them all.\n",
        kSummary);
    return 0;
  }
  const std::string command = take_checked_command(arguments);
  const std::optional<int> code = command == "sft" ? check_settings<train::SftOptions>(command, arguments)
                                                   : check_settings<rl::GrpoOptions>(command, arguments);
  if (code) return *code;
  Arguments again = {"check"};
  again.insert(again.end(), given.begin(), given.end());
  return replace_process("thinkvg-tensors", again);
}

}  // namespace thinkvg::tools
