// One process of the tests in this folder: dist_worker MODE FOLDER. FOLDER/settings.json says what to do; what came of
// it is written to FOLDER/rank-N.json.
#include <ATen/ATen.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <thread>

#include "tests/device/checking_device.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/dist/process_group.h"
#include "thinkvg/eval/evaluator.h"
#include "thinkvg/models/pack.h"
#include "thinkvg/nn/head_stats.h"
#include "thinkvg/rl/grpo.h"
#include "thinkvg/train/distributed.h"
#include "thinkvg/train/parameter_shards.h"
#include "thinkvg/train/sft.h"

namespace {

using namespace thinkvg;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::vector<double> numbers(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.cpu().to(at::kDouble).contiguous();
  return {plain.const_data_ptr<double>(), plain.const_data_ptr<double>() + plain.numel()};
}

// Every collective, on numbers that tell the ranks apart.
Json run_collectives(dist::ProcessGroup& group, const Json& settings) {
  const at::Device device = settings.value("on_another_device", false) ? test::checking_device() : at::Device(at::kCPU);
  const auto rank = static_cast<double>(group.rank());
  Json result = Json::object();
  for (const auto& [name, type] : {std::pair<const char*, at::ScalarType>{"float", at::kFloat},
                                   {"double", at::kDouble},
                                   {"bfloat16", at::kBFloat16},
                                   {"int64", at::kLong}}) {
    const at::Tensor tensor = at::full({3}, rank + 1, type).to(device);
    group.all_reduce(tensor, name);
    result[name] = numbers(tensor);
  }
  const at::Tensor largest = at::full({1}, rank, device), smallest = at::full({1}, rank, device);
  group.all_reduce(largest, "largest", dist::Reduction::max);
  group.all_reduce(smallest, "smallest", dist::Reduction::min);
  result["largest"] = numbers(largest);
  result["smallest"] = numbers(smallest);
  const at::Tensor sent = at::full({2}, rank, device);
  group.broadcast(sent, "from the last", group.size() - 1);
  result["broadcast"] = numbers(sent);
  result["gathered"] = numbers(group.all_gather(at::full({2}, rank, device), "gathered"));
  const at::Tensor rows = at::arange(0, 2 * group.size(), at::kFloat).view({group.size(), 2}).to(device) * (rank + 1);
  result["scattered"] = numbers(group.reduce_scatter(rows, "scattered"));
  result["texts"] = group.gather_texts(std::string(static_cast<std::size_t>(group.rank()), 'x'), "texts");
  result["text"] = group.broadcast_text(group.is_main() ? "hello" : "no", "text");
  result["sum"] = group.sum({0.5, rank}, "sum");
  result["any"] = {group.any(rank == 1, "some"), group.any(false, "none")};
  result["share"] = group.share_of(5);
  std::vector<dist::PendingCollective> pending;
  std::vector<at::Tensor> tensors;
  for (int i = 0; i < 5; ++i) {
    tensors.push_back(at::full({1000}, rank + i, device));
    pending.push_back(group.start_all_reduce(tensors.back(), "at once"));
  }
  for (dist::PendingCollective& one : pending) one.wait();
  std::vector<double> firsts;
  for (const at::Tensor& tensor : tensors) firsts.push_back(tensor[999].item<double>());
  result["at_once"] = firsts;
  result["bytes"] = group.stats().at("at once").bytes_sent;
  group.require_equal("same", "word");
  group.barrier("end");
  return result;
}

// Small steps, until one rank does something wrong in step 3.
void run_steps(dist::ProcessGroup& group, const Json& settings, const std::filesystem::path& marker) {
  const auto rank = settings.at("rank").get<std::int64_t>();
  const auto fault = settings.at("fault").get<std::string>();
  const bool mine = group.rank() == rank;
  for (std::int64_t step = 1; step <= settings.value("num_steps", std::int64_t{200}); ++step) {
    group.set_phase("work", step);
    if (step == 3) write_file_atomically(marker, "");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    at::Tensor tensor = at::ones({4});
    std::string name = "result";
    if (step == 3 && mine) {
      if (fault == "killed") std::raise(SIGKILL);
      if (fault == "stopped") std::raise(SIGSTOP);
      if (fault == "error") throw_failure("row 17: the picture is damaged");
      if (fault == "late") std::this_thread::sleep_for(std::chrono::seconds(30));
      if (fault == "shape") tensor = at::ones({5});
      if (fault == "name") name = "other";
    }
    if (step == 3 && fault == "busy") std::this_thread::sleep_for(std::chrono::seconds(mine ? 0 : 30));
    if (step == 3 && fault == "busy" && mine) throw_failure("no memory left");
    group.all_reduce(tensor, name);
  }
}

// Steps of an optimizer whose parameters fill several buckets; no loss reaches the last one.
Json run_optimizer(dist::ProcessGroup& group) {
  models::NamedTensors parameters;
  const std::vector<std::vector<std::int64_t>> shapes = {{700, 500}, {3}, {600, 501}, {129}, {1}, {8, 8}};
  for (const auto& shape : shapes)
    parameters.emplace_back(fmt::format("p{}", parameters.size()), at::full(shape, 0.5).set_requires_grad(true));
  train::OptimizerOptions options;
  options.weight_decay = 0.1;
  train::DistributedAdamW optimizer({{parameters, 1.0, 0.1}}, options, group);
  const auto loss = [&](std::int64_t place) {
    at::Tensor sum = at::zeros({});
    for (std::size_t i = 0; i + 1 < parameters.size(); ++i) {
      // Some are reached by some places only.
      if ((static_cast<std::size_t>(place) + i) % 3 == 0) continue;
      const at::Tensor& parameter = parameters[i].second;
      const at::Tensor target = at::arange(parameter.numel(), at::kFloat).add(place).sin().view(parameter.sizes());
      sum = sum + (parameter - target).square().mean();
    }
    return sum;
  };
  Json steps = Json::array();
  for (int step = 0; step < 3; ++step) {
    const std::vector<std::int64_t> places = group.share_of(5);
    const std::vector<at::Tensor> gradients = optimizer.accumulate(
        std::ssize(places), [&](std::int64_t i) { return loss(places[static_cast<std::size_t>(i)]); });
    const double norm = optimizer.step(gradients, 0.01);
    Json sums = Json::array();
    for (const auto& [name, parameter] : parameters) sums.push_back(parameter.detach().sum(at::kDouble).item<double>());
    steps.push_back({{"norm", norm}, {"sums", sums}});
  }
  return {{"steps", steps}};
}

// Steps of a small model with a tower that every other pass needs, weights split or not.
Json run_split_weights(dist::ProcessGroup& group, const Json& settings) {
  train::TuningOptions tuning;
  if (settings.contains("tuning")) read_settings(tuning, settings.at("tuning"), "settings.json");
  const train::TrainedModel trained(settings.at("model").get<std::string>(), tuning, 0);
  models::VisionLanguageModel& model = trained.model();
  const auto shards = train::shard_parameters(trained, group);
  train::OptimizerOptions options;
  options.weight_decay = 0.1;
  train::DistributedAdamW optimizer(trained.groups(options), options, group, shards.get());

  const auto num_here = [&] {
    std::int64_t count = 0;
    for (const at::Tensor& parameter : model.parameters())
      if (parameter.storage().nbytes() > 0) count += parameter.numel();
    return count;
  };
  std::int64_t most_here = 0;
  const auto loss = [&](std::int64_t pass) {
    std::vector<std::int64_t> ids, image_rows;
    std::vector<models::ImageGrid> grids;
    std::vector<at::Tensor> features;
    if (pass % 2 == 0) {
      grids.push_back({1, 4, 4});
      features.push_back(
          model.encode_images({at::arange(16 * 1176, at::kFloat).add(pass).sin().view({16, 1176}), grids}));
      for (std::int64_t i = 0; i < features.front().size(0); ++i) {
        image_rows.push_back(i);
        ids.push_back(model.special_tokens().image);
      }
    }
    for (std::int64_t i = 0; i < 8; ++i) ids.push_back(10 + (5 * pass + i) % 50);
    models::PackBuilder packer;
    packer.add({ids, model.token_positions(ids, grids).positions, image_rows, features, -1});
    const models::Pack pack = packer.build(at::kCPU);
    nn::PackedAttention attention(pack.layout);
    const at::Tensor hidden = models::run_pack(model, pack, attention);
    most_here = std::max(most_here, num_here());
    return nn::head_token_stats(hidden, model.output_weight(), at::full({hidden.size(0)}, 11 + pass, at::kLong), {})
        .logprob.mean()
        .neg();
  };
  Json result = {{"here_between", num_here()}};
  try {
    nn::PackedAttention attention(nn::SequenceLayout{{1}, {-1}});
    model.decode(at::zeros({1, model.hidden_size()}, model.output_weight().options().requires_grad(false)),
                 models::text_positions(0, 1), attention);
  } catch (const std::exception& error) {
    result["unfetched"] = error.what();
  }
  most_here = 0;
  for (int step = 0; step < 3; ++step) {
    const std::vector<std::int64_t> passes = group.share_of(5);
    const std::vector<at::Tensor> gradients = optimizer.accumulate(
        std::ssize(passes), [&](std::int64_t i) { return loss(passes[static_cast<std::size_t>(i)]); });
    const double norm = optimizer.step(gradients, 0.01);
    const std::int64_t most = most_here;
    const train::ParameterShards::Whole whole(shards.get());
    Json sums = Json::object();
    for (const auto& [name, parameter] : trained.parameters())
      sums[name] = parameter.detach().square().sum(at::kDouble).item<double>();
    const at::NoGradGuard no_grad;
    result["steps"].push_back({{"norm", norm}, {"sums", sums}, {"loss", loss(0).item<double>()}});
    most_here = most;
  }
  result["most_here"] = most_here;
  return result;
}

template <class Options>
Options options_of(const Json& settings) {
  Options options;
  read_settings(options, settings.at("options"), "settings.json");
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string mode = argv[1];
  const std::filesystem::path folder = argv[2];
  const dist::LaunchEnvironment environment = dist::read_launch_environment();
  const auto file = folder / fmt::format("rank-{}.json", environment.rank);
  Json result = Json::object();
  const auto start = Clock::now();
  int code = 0;
  try {
    const Json settings = read_json_file(folder / "settings.json");
    dist::DistOptions options;
    if (settings.contains("dist")) read_settings(options, settings.at("dist"), "settings.json");
    if (settings.contains("absent") && settings.at("absent").get<std::int64_t>() == environment.rank) return 0;
    const auto end = [&](const std::string& failure) {
      write_file_atomically(file, Json{{"stuck", failure}}.dump());
      _exit(3);
    };
    dist::ProcessGroup group(environment, options, {end});
    try {
      if (mode == "collectives") result = run_collectives(group, settings);
      if (mode == "optimizer") result = run_optimizer(group);
      if (mode == "split_weights") result = run_split_weights(group, settings);
      if (mode == "steps") run_steps(group, settings, folder / fmt::format("started-{}", environment.rank));
      if (mode == "sft") train::run_sft(options_of<train::SftOptions>(settings), group);
      if (mode == "grpo") rl::run_grpo(options_of<rl::GrpoOptions>(settings), group);
      if (mode == "eval") eval::evaluate(options_of<eval::EvalOptions>(settings), group);
      Json stats = Json::object();
      for (const auto& [name, cost] : group.stats())
        stats[name] = {{"count", cost.count}, {"bytes", cost.bytes_sent}, {"seconds", cost.seconds_waited}};
      result["stats"] = stats;
    } catch (const std::exception& error) {
      group.fail(error);
      throw;
    }
  } catch (const std::exception& error) {
    result["error"] = error.what();
    code = 1;
  }
  result["seconds"] = seconds_since(start);
  write_file_atomically(file, result.dump());
  return code;
}
