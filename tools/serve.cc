#include <chrono>
#include <memory>
#include <thread>

#include "thinkvg/core/interrupt.h"
#include "thinkvg/core/log.h"
#include "thinkvg/nn/device.h"
#include "thinkvg/serve/engine_backend.h"
#include "thinkvg/serve/server.h"
#include "tools/commands.h"

namespace thinkvg::tools {
namespace {

struct ServeCommandOptions {
  std::string model;
  std::string dtype;
  std::string device = "auto";
  serve::ServeOptions serve;
  generation::EngineOptions engine;
  std::int64_t feature_cache_mb = 512;

  void visit(SettingsVisitor& v) {
    v.setting("model", model, "Model folder, adapter, or run folder (its newest checkpoint).");
    v.setting("dtype", dtype, models::kDtypeHelp);
    v.setting("device", device, nn::kDeviceHelp);
    serve.visit(v);
    v.setting("feature_cache_mb", feature_cache_mb, "Memory for the features of pictures that are asked about again.");
    v.section("engine", engine, "How completions are computed.");
  }
};

}  // namespace

int run_serve(const Arguments& arguments) {
  ServeCommandOptions options;
  if (!parse_options("serve", "serve a model: an OpenAI-compatible API and a page", arguments, options)) return 0;
  require_setting("serve", "model", options.model, "DIR");
  options.serve.check();
  const InterruptGuard guard;
  const std::filesystem::path folder = models::resolve_model_folder(options.model);
  std::string name = options.serve.name;
  if (name.empty()) name = std::filesystem::weakly_canonical(options.model).filename().string();
  if (name.empty()) name = "thinkvg";
  auto backend = std::make_shared<serve::EngineBackend>(
      models::load_bundle(folder, models::dtype_setting(options.dtype), nn::device_setting(options.device)),
      options.engine, generation::PromptBuilder::Options{options.serve.pictures, options.feature_cache_mb});
  serve::Server server(options.serve, name, backend);
  server.start();
  spdlog::info("serving {} at {}{}", name, server.url(), options.serve.page ? "" : "/v1");
  while (!interrupt_requested()) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  spdlog::info("stopping: requests that have come are answered first");
  server.stop();
  return 0;
}

}  // namespace thinkvg::tools
