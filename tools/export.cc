#include "thinkvg/models/export.h"

#include <spdlog/fmt/fmt.h>

#include <cstdio>

#include "tools/commands.h"

namespace thinkvg::tools {
namespace {

std::string gigabytes(std::int64_t bytes) { return fmt::format("{:.3f} GB", static_cast<double>(bytes) / 1e9); }

}  // namespace

int run_export(const Arguments& arguments) {
  models::ExportOptions options;
  if (!parse_options("export", "write a model folder with adapters merged, in another dtype or in shards", arguments,
                     options))
    return 0;
  require_setting("export", "model", options.model, "DIR");
  require_setting("export", "out", options.out, "DIR");
  const models::ExportPlan plan = models::plan_export(options);
  fmt::print("model: {}\n", plan.base.string());
  if (!plan.adapter.empty()) fmt::print("adapter: {}\n", plan.adapter.string());
  fmt::print("weights: {} parameters, {} to {}, {}\n", plan.num_parameters, plan.loaded_dtype, plan.written_dtype,
             gigabytes(plan.written_bytes));
  fmt::print("memory: needs {}", gigabytes(plan.memory_bytes));
  if (plan.available_memory >= 0) fmt::print(" of {} available", gigabytes(plan.available_memory));
  fmt::print("{}\n", plan.available_memory >= 0 && plan.available_memory < plan.memory_bytes
                         ? ": too little, the machine will swap or end the program"
                         : "");
  std::fflush(stdout);

  const models::ExportReport report = models::export_model(options);
  for (const auto& [name, bytes] : report.files) fmt::print("{:>14}  {}\n", bytes, name);
  if (report.verified)
    fmt::print(
        "verified on {} positions: logits differ by at most {:.3g}, {:.3g} nats in the mean, the same choice at "
        "{:.1f} %\n",
        report.verified->num_positions, report.verified->largest_difference, report.verified->mean_divergence,
        100 * report.verified->same_choice);
  fmt::print("written: {}\n", options.out);
  return 0;
}

}  // namespace thinkvg::tools
