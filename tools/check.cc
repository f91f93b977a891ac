#include "tools/check.h"

#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/images.h"
#include "thinkvg/data/wrappers.h"
#include "thinkvg/dist/plan.h"
#include "thinkvg/models/skeleton.h"
#include "thinkvg/nn/workers.h"
#include "thinkvg/rl/grpo.h"
#include "thinkvg/train/answer_sequences.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/memory_plan.h"
#include "thinkvg/train/out_of_memory.h"
#include "thinkvg/train/parameter_shards.h"
#include "tools/commands.h"

namespace thinkvg::tools {
namespace {

using train::MemoryItem;
using train::TrainingSequence;

constexpr std::size_t kQuestionsAtATime = 32;

// What the two commands tell differently.
struct Run {
  std::string command;
  std::string model, images;
  data::DataOptions data;
  std::int64_t seed = 0;
  text::PromptOptions prompt;
  train::TuningOptions tuning;
  train::RunOptions options;
  bool think = true;
  std::int64_t max_length = 0;
  bool skips_overlong = false;
  bool joins_turns = false;
  std::int64_t questions_a_step = 1;
  double epochs = 0;                      // where options.steps is 0
  std::int64_t group_size = 0;            // of grpo, else 0
  std::int64_t max_new_tokens = 0;        // of grpo
  generation::EngineOptions engine = {};  // of grpo
  bool reference = false;
  bool overlap_rollout = false;
  bool evaluates = false;
  train::MemoryLevers levers;
  dist::DistOptions dist;
};

Run run_of(const train::SftOptions& o) {
  return {.command = "sft",
          .model = o.model,
          .images = o.images,
          .data = o.data,
          .seed = o.seed,
          .prompt = o.prompt,
          .tuning = o.tuning,
          .options = o.run,
          .think = o.think,
          .max_length = o.max_length,
          .skips_overlong = o.overlong == "skip",
          .joins_turns = o.turns == "joined",
          .questions_a_step = o.batch_size,
          .epochs = o.epochs,
          .evaluates = o.eval.every > 0,
          .levers = train::memory_levers(o),
          .dist = o.dist};
}

Run run_of(const rl::GrpoOptions& o) {
  return {.command = "grpo",
          .model = o.model,
          .images = o.images,
          .data = o.data,
          .seed = o.seed,
          .prompt = o.prompt,
          .tuning = o.tuning,
          .options = o.run,
          .questions_a_step = o.prompts_per_step,
          .group_size = o.group_size,
          .max_new_tokens = o.sampling.max_new_tokens,
          .engine = o.engine,
          .reference = o.beta != 0 && o.tuning.lora.rank == 0,
          .overlap_rollout = o.overlap_rollout,
          .evaluates = o.eval.every > 0,
          .levers = rl::memory_levers(o),
          .dist = o.dist};
}

// One question in tokens.
struct Length {
  std::string id;
  std::int64_t tokens = 0, image_tokens = 0, targets = 0;
};

std::int64_t quantile(std::vector<std::int64_t> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))];
}

double mean(const std::vector<std::int64_t>& values) {
  return values.empty() ? 0
                        : static_cast<double>(std::accumulate(values.begin(), values.end(), std::int64_t{0})) /
                              static_cast<double>(values.size());
}

std::vector<std::int64_t> numbers(const std::vector<Length>& lengths, std::int64_t Length::*number) {
  std::vector<std::int64_t> values;
  for (const Length& length : lengths) values.push_back(length.*number);
  return values;
}

std::int64_t machine_memory() {
  return static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
}

class Check {
 public:
  Check(Run run, CheckOptions options) : run_(std::move(run)), options_(std::move(options)) {}

  // Returns whether nothing is in the way of the run.
  bool look(const Json& settings) {
    report_ = {{"command", run_.command}, {"settings", settings}};
    say("settings\n" + indented(to_yaml(settings)));
    look_at_data();
    const models::ModelBundle bundle = models::load_skeleton(models::resolve_model_folder(run_.model));
    if (dataset_ && dataset_->size() > 0) look_at_questions(bundle);
    const train::TrainedModel trained(bundle, run_.tuning, run_.seed);
    look_at_parameters(trained);
    look_at_steps();
    plan(trained);
    report_["problems"] = problems_;
    if (!problems_.empty()) say("problems\n");
    for (const std::string& problem : problems_) say("  " + problem + "\n");
    if (options_.json)
      fmt::print("{}\n", report_.dump(2, ' ', false, Json::error_handler_t::replace));
    else
      fmt::print("{}", text_);
    return problems_.empty();
  }

 private:
  void say(const std::string& text) { text_ += text; }
  static std::string indented(const std::string& text) {
    std::string result;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      result += "  " + text.substr(begin, end - begin) + "\n";
      begin = end + 1;
    }
    return result;
  }

  void look_at_data() {
    data::DataOptions lenient = run_.data;
    lenient.skip_bad_rows = true;
    dataset_ = data::open_data(lenient);
    const std::int64_t num_bad = std::ssize(dataset_->bad_rows());
    std::map<std::string, std::int64_t> types;
    std::map<std::string, std::int64_t> pictures;
    for (std::int64_t i = 0; i < dataset_->size(); ++i) {
      const data::Sample sample = dataset_->get(i);
      ++types[data::question_type_name(sample.type)];
      ++pictures[sample.image];
    }
    say(fmt::format("data\n  {}: {} questions about {} pictures", run_.data.path, format_count(dataset_->size()),
                    format_count(std::ssize(pictures))));
    for (const auto& [name, count] : types) say(fmt::format(", {} {}", format_count(count), name));
    say("\n");
    Json data = {{"num_questions", dataset_->size()}, {"num_pictures", pictures.size()}, {"by_type", types}};
    data["num_bad_rows"] = num_bad;
    if (num_bad > 0) {
      const data::BadRow& first = dataset_->bad_rows().front();
      say(fmt::format("  {} rows cannot be used; the first is row {}: {}\n", format_count(num_bad), first.row,
                      first.reason));
      if (!run_.data.skip_bad_rows)
        problems_.push_back(fmt::format(
            "{} has {} unusable rows, which stop the run: mend them ('thinkvg inspect --data {} --fix FILE'), "
            "or give --data.skip_bad_rows",
            run_.data.path, num_bad, run_.data.path));
    }
    const data::ImageFinder finder(run_.images);
    const data::PictureCheck check = data::check_pictures(*dataset_, finder);
    say("  " + check.summary() + "\n");
    data["hit_rate"] = check.hit_rate();
    if (check.hit_rate() < run_.data.min_hit_rate)
      problems_.push_back(
          fmt::format("{}, fewer than data.min_hit_rate {} asks for: the run would not start; the first "
                      "missing is {} of question {}",
                      check.summary(), run_.data.min_hit_rate, check.missing.front().image, check.missing.front().id));
    if (!check.missing.empty()) dataset_ = data::with_pictures(dataset_, finder, 0);
    if (run_.joins_turns) {
      const std::int64_t before = dataset_->size();
      dataset_ = data::join_turns(dataset_);
      if (dataset_->size() < before)
        say(fmt::format("  {} of these are turns that are joined: {} sequences\n", format_count(before),
                        format_count(dataset_->size())));
    }
    data["num_sequences"] = dataset_->size();
    report_["data"] = std::move(data);
  }

  // Some questions as the run would build them: their pictures are decoded, their tokens counted.
  void look_at_questions(const models::ModelBundle& bundle) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(dataset_->size()));
    std::iota(order.begin(), order.end(), 0);
    RandomStream random({hash_key("check"), static_cast<std::uint64_t>(run_.seed)});
    random.shuffle(order);
    if (options_.check_questions > 0 && options_.check_questions < dataset_->size())
      order.resize(static_cast<std::size_t>(options_.check_questions));
    generation::QuestionBuilder builder(
        bundle,
        {run_.prompt, run_.images, false, {std::int64_t{64} << 20, at::get_num_threads(), run_.options.pictures}});
    std::vector<std::string> unreadable;
    for (std::size_t begin = 0; begin < order.size(); begin += kQuestionsAtATime) {
      std::vector<data::Sample> samples;
      for (std::size_t i = begin; i < std::min(order.size(), begin + kQuestionsAtATime); ++i)
        samples.push_back(dataset_->get(order[i]));
      try {
        add_questions(bundle, builder.build(samples));
      } catch (const std::runtime_error&) {
        // One by one, to tell which.
        for (const data::Sample& sample : samples) {
          try {
            add_questions(bundle, builder.build({sample}));
          } catch (const std::runtime_error& error) {
            unreadable.emplace_back(error.what());
          }
        }
      }
    }
    for (std::size_t i = 0; i < std::min<std::size_t>(3, unreadable.size()); ++i) problems_.push_back(unreadable[i]);
    if (unreadable.size() > 3) problems_.push_back(fmt::format("and {} more like these", unreadable.size() - 3));
    if (lengths_.empty()) return;

    const std::vector<std::int64_t> tokens = numbers(lengths_, &Length::tokens);
    const std::string which = std::ssize(lengths_) == dataset_->size()
                                  ? "all questions"
                                  : fmt::format("{} questions, chosen by seed", format_count(std::ssize(lengths_)));
    say(fmt::format("  tokens of {}: median {}, 95 % {}, longest {}; of pictures {:.0f}, {} {:.0f} on average\n", which,
                    quantile(tokens, 0.5), quantile(tokens, 0.95), quantile(tokens, 1),
                    mean(numbers(lengths_, &Length::image_tokens)), run_.group_size > 0 ? "of text" : "with loss",
                    run_.group_size > 0 ? mean(tokens) - mean(numbers(lengths_, &Length::image_tokens))
                                        : mean(numbers(lengths_, &Length::targets))));
    Json document = {{"num_questions", lengths_.size()},
                     {"median", quantile(tokens, 0.5)},
                     {"quantile_95", quantile(tokens, 0.95)},
                     {"longest", quantile(tokens, 1)},
                     {"mean_image_tokens", mean(numbers(lengths_, &Length::image_tokens))},
                     {"mean_targets", mean(numbers(lengths_, &Length::targets))},
                     {"overlong", Json::array()}};
    if (run_.max_length > 0) {
      for (const Length& length : lengths_)
        if (length.tokens > run_.max_length) document["overlong"].push_back(length.id);
      const std::size_t count = document["overlong"].size();
      say(fmt::format("  longer than max_length {}: {} of {}\n", run_.max_length, count, lengths_.size()));
      if (count > 0 && !run_.skips_overlong)
        problems_.push_back(
            fmt::format("{} of {} questions looked at are longer than max_length {}, such as {}: the run "
                        "would stop there; raise it, or give --overlong skip",
                        count, lengths_.size(), run_.max_length, document["overlong"].front().get<std::string>()));
    }
    report_["tokens"] = std::move(document);
    say(example_);
  }

  void add_questions(const models::ModelBundle& bundle, const std::vector<generation::Question>& questions) {
    for (const generation::Question& question : questions) {
      if (run_.group_size > 0) {
        lengths_.push_back({question.sample.id, std::ssize(question.prompt.ids), std::ssize(question.prompt.image_rows),
                            run_.max_new_tokens});
        if (example_.empty()) show_example(bundle, question, question.prompt.ids, {});
        continue;
      }
      const TrainingSequence sequence = train::make_training_sequence(bundle, run_.prompt, question, run_.think);
      lengths_.push_back(
          {question.sample.id, sequence.length(), std::ssize(sequence.image_rows), std::ssize(sequence.targets)});
      if (example_.empty()) show_example(bundle, question, sequence.ids, sequence.targets);
    }
  }

  // The text that the model sees, with what carries loss in green, or between marks where there are no colours.
  void show_example(const models::ModelBundle& bundle, const generation::Question& question,
                    const std::vector<std::int64_t>& ids, const std::vector<std::int64_t>& targets) {
    const bool colours = !options_.json && isatty(STDOUT_FILENO) != 0;
    const std::int64_t image = bundle.model->special_tokens().image;
    std::vector<bool> learned(ids.size(), false);
    for (const std::int64_t place : targets) learned[static_cast<std::size_t>(place)] = true;
    std::string text;
    Json spans = Json::array();
    for (std::size_t begin = 0; begin < ids.size();) {
      std::size_t end = begin + 1;
      while (end < ids.size() && learned[end] == learned[begin] && (ids[end] == image) == (ids[begin] == image)) ++end;
      std::string part;
      if (ids[begin] == image)
        part = fmt::format("[picture: {} tokens]", end - begin);
      else
        part = bundle.tokenizer->decode(std::span(ids).subspan(begin, end - begin), /*keep_special=*/true);
      spans.push_back({{"text", part}, {"loss", static_cast<bool>(learned[begin])}, {"num_tokens", end - begin}});
      if (!learned[begin])
        text += part;
      else
        text += colours ? "\033[32m" + part + "\033[0m" : "\u27E6" + part + "\u27E7";
      begin = end;
    }
    example_ = fmt::format("example: question {}, {} tokens", question.sample.id, ids.size());
    if (run_.group_size > 0)
      example_ += ", the prompt that completions follow";
    else
      example_ += fmt::format(", {} with loss ({})", targets.size(), colours ? "green" : "between \u27E6 and \u27E7");
    example_ += "\n" + indented(text);
    report_["example"] = {{"id", question.sample.id}, {"num_tokens", ids.size()}, {"spans", spans}};
    if (run_.group_size > 0) {
      const std::string reference = train::target_text(question.sample, question.geometry(), question.frame, false);
      example_ += "  reference, which rewards compare with:\n" + indented(reference);
      report_["example"]["reference"] = reference;
    }
  }

  void look_at_parameters(const train::TrainedModel& trained) {
    struct Count {
      std::int64_t all = 0, trained = 0;
    };
    std::map<std::string, Count> parts;
    const auto name_of = [](models::ModelPart part) {
      return part == models::ModelPart::vision      ? "vision"
             : part == models::ModelPart::projector ? "projector"
                                                    : "language";
    };
    for (const auto& item : trained.model().named_parameters()) {
      Count& count = parts[name_of(trained.model().part_of(item.key()))];
      count.all += item.value().numel();
      if (item.value().requires_grad()) count.trained += item.value().numel();
    }
    if (trained.adapters())
      for (const auto& [name, tensor] : trained.adapters()->tensors()) {
        Count& count = parts[fmt::format("adapters of {}", name_of(trained.model().part_of(name)))];
        count.all += tensor.numel();
        if (tensor.requires_grad()) count.trained += tensor.numel();
      }
    say("parameters\n");
    Json document = {{"trained", trained.num_trained()}, {"all", trained.num_parameters()}};
    for (const auto& [name, count] : parts) {
      say(fmt::format("  {:22} trained {:>15}   frozen {:>15}\n", name, format_count(count.trained),
                      format_count(count.all - count.trained)));
      document["parts"][name] = {{"trained", count.trained}, {"frozen", count.all - count.trained}};
    }
    say(fmt::format("  {:22} trained {:>15}   of {} ({:.2f} %)\n", "together", format_count(trained.num_trained()),
                    format_count(trained.num_parameters()),
                    100.0 * static_cast<double>(trained.num_trained()) /
                        static_cast<double>(std::max<std::int64_t>(1, trained.num_parameters()))));
    report_["parameters"] = std::move(document);
  }

  void look_at_steps() {
    const auto size = static_cast<double>(std::max<std::int64_t>(1, dataset_ ? dataset_->size() : 1));
    const auto a_step = static_cast<double>(run_.questions_a_step);
    num_steps_ =
        run_.options.steps > 0 ? run_.options.steps : static_cast<std::int64_t>(std::ceil(run_.epochs * size / a_step));
    const double epochs = static_cast<double>(num_steps_) * a_step / size;
    say(fmt::format("steps\n  {} steps of {} questions{}: {:.2f} epochs\n", format_count(num_steps_),
                    run_.questions_a_step, run_.group_size > 0 ? fmt::format(" x {} completions", run_.group_size) : "",
                    epochs));
    report_["steps"] = {{"num_steps", num_steps_}, {"questions_a_step", run_.questions_a_step}, {"epochs", epochs}};
  }

  train::MemorySettings memory_settings(const train::TrainedModel& trained) const {
    train::MemorySettings s;
    s.model = train::read_model_numbers(trained.model().config());
    s.num_parameters = trained.num_parameters();
    s.num_trained = trained.num_trained();
    s.trains_vision = s.trains_language = false;
    for (const auto& [name, tensor] : trained.parameters()) {
      const models::ModelPart part = trained.part_of_parameter(name);
      s.trains_vision |= part == models::ModelPart::vision;
      s.trains_language |= part == models::ModelPart::language;
    }
    s.trains_head = trained.model().output_weight().requires_grad();
    s.adapter_rank = run_.tuning.lora.rank;
    s.adapter_dropout = run_.tuning.lora.dropout > 0;
    s.bytes_a_weight = run_.tuning.dtype == "bfloat16" ? 2 : 4;
    s.gradient_checkpointing = run_.tuning.gradient_checkpointing;
    s.on_accelerator = !options_.device_memory.empty();
    s.async_save = run_.options.async_save;
    s.picture_cache_bytes = run_.options.picture_cache_mb << 20;
    s.evaluates = run_.evaluates;
    if (options_.world_size > 1) s.split = train::split_weights(trained);
    set_sharding(s, run_.dist.sharding);

    const double length = std::max(1.0, mean(numbers(lengths_, &Length::tokens)));
    std::int64_t longest = quantile(numbers(lengths_, &Length::tokens), 1);
    if (run_.max_length > 0) longest = std::min(longest, run_.max_length);
    double unit = length;  // what is not torn apart: a question, or a group of completions with its prompt
    double targets = mean(numbers(lengths_, &Length::targets));
    if (run_.group_size > 0) {
      targets = static_cast<double>(run_.group_size * run_.max_new_tokens);
      unit += targets;
      longest += run_.group_size * run_.max_new_tokens;
    }
    const auto a_step = static_cast<std::int64_t>(unit * static_cast<double>(run_.questions_a_step) /
                                                  static_cast<double>(options_.world_size));
    const std::int64_t limit =
        std::min(run_.options.micro_batch_tokens, a_step / std::max<std::int64_t>(1, s.num_workers) + 1);
    s.pass_tokens = std::max(limit, longest);
    const double share = static_cast<double>(s.pass_tokens) / unit;
    s.pass_image_tokens = static_cast<std::int64_t>(share * mean(numbers(lengths_, &Length::image_tokens)));
    s.pass_targets = static_cast<std::int64_t>(share * targets);
    s.passes_a_step = std::max<std::int64_t>(1, (a_step + s.pass_tokens - 1) / s.pass_tokens);
    if (run_.group_size > 0) {
      train::MemorySettings::Rollout rollout;
      const std::int64_t all = std::max<std::int64_t>(1, run_.questions_a_step * run_.group_size / options_.world_size);
      rollout.num_rows = std::min(run_.engine.max_rows, all);
      // The prefix cache keeps prompts that are done, too.
      rollout.num_prompts =
          ((run_.engine.prefix_cache || s.on_accelerator ? all : rollout.num_rows) + run_.group_size - 1) /
          run_.group_size;
      rollout.prompt_tokens = quantile(numbers(lengths_, &Length::tokens), 1);
      rollout.new_tokens = run_.max_new_tokens;
      rollout.reference = run_.reference;
      rollout.overlaps = run_.overlap_rollout;
      // What EngineOptions say; a CPU's default is a quarter of what is free.
      if (run_.engine.cache_mb > 0)
        rollout.cache_bytes = run_.engine.cache_mb << 20;
      else if (!s.on_accelerator)
        rollout.cache_bytes = machine_memory() / 4;
      s.rollout = rollout;
    }
    return s;
  }

  // What dist.sharding is to split over the processes.
  void set_sharding(train::MemorySettings& s, const std::string& sharding) const {
    dist::DistOptions dist = run_.dist;
    dist.sharding = sharding;
    const std::int64_t size = dist.processes_a_shard(options_.world_size);
    s.optimizer_shards = sharding == "none" ? 1 : size;
    s.gradient_shards = sharding == "gradients" || sharding == "parameters" ? size : 1;
    s.parameter_shards = sharding == "parameters" ? size : 1;
    // Passes with split weights run one after the other.
    s.num_workers = s.on_accelerator || s.parameter_shards > 1 ? 1 : nn::num_workers();
    s.bucket_bytes = options_.world_size > 1 && sharding != "parameters" ? run_.dist.bucket_mb << 20 : 0;
  }

  static Json items_json(const std::vector<MemoryItem>& items) {
    Json list = Json::array();
    for (const MemoryItem& item : items)
      list.push_back({{"name", item.name}, {"bytes", item.bytes}, {"meaning", item.meaning}});
    return list;
  }

  void plan(const train::TrainedModel& trained) {
    train::MemorySettings settings = memory_settings(trained);
    const bool device = settings.on_accelerator;
    const std::int64_t available = device ? parse_bytes(options_.device_memory) : machine_memory();
    const auto total = [&](const train::MemoryPlan& p) { return p.device_bytes() + (device ? 0 : p.host_bytes()); };
    settings.fetches_by_layer =
        run_.dist.rollout_weights == "by_layer" ||
        (run_.dist.rollout_weights == "auto" && total(train::plan_memory(settings)) > available);
    const train::MemoryPlan plan = train::plan_memory(settings);
    say(fmt::format("memory, planned for {} of {}\n",
                    device ? fmt::format("{} accelerator{}", options_.world_size, options_.world_size > 1 ? "s" : "")
                           : fmt::format("this machine with {} workers", settings.num_workers),
                    train::format_bytes(available)));
    const auto list = [&](const char* title, const std::vector<MemoryItem>& items) {
      if (items.empty()) return;
      say(fmt::format("  {}\n", title));
      for (const MemoryItem& item : items)
        say(fmt::format("    {:16} {:>10}   {}\n", item.name, train::format_bytes(item.bytes), item.meaning));
    };
    list("always", plan.always);
    list("while gradients are computed", plan.pass);
    list(plan.rollout_overlaps ? "at the same time, for the next completions" : "while completions are drawn",
         plan.rollout);
    list(device ? "of the host, not the device" : "besides", plan.host);
    const bool fits = total(plan) <= available;
    say(fmt::format("    {:16} {:>10}   of {}: {}\n", "at most", train::format_bytes(total(plan)),
                    train::format_bytes(available), fits ? "it fits" : "it does not fit"));
    Json document = {{"always", items_json(plan.always)},
                     {"pass", items_json(plan.pass)},
                     {"rollout", items_json(plan.rollout)},
                     {"host", items_json(plan.host)},
                     {"total_bytes", total(plan)},
                     {"available_bytes", available},
                     {"fits", fits}};

    train::MemorySettings other = settings;
    other.gradient_checkpointing = !settings.gradient_checkpointing;
    const std::int64_t others = total(train::plan_memory(other));
    say(fmt::format("    {:16} {:>10}   with gradient_checkpointing {}\n", "", train::format_bytes(others),
                    other.gradient_checkpointing));
    document[other.gradient_checkpointing ? "total_bytes_with_checkpointing" : "total_bytes_without_checkpointing"] =
        others;
    if (options_.world_size > 1) {
      for (const char* sharding : {"none", "optimizer", "gradients", "parameters"}) {
        if (sharding == run_.dist.sharding) continue;
        other = settings;
        set_sharding(other, sharding);
        const std::int64_t split = total(train::plan_memory(other));
        say(fmt::format("    {:16} {:>10}   with dist.sharding {}\n", "", train::format_bytes(split), sharding));
        document["sharding"].push_back({{"sharding", sharding}, {"total_bytes", split}});
      }
      const dist::PlannedCommunication sent = dist::plan_communication(
          {.num_trained = settings.num_trained,
           .bytes_per_weight = settings.bytes_a_weight,
           .sharding = run_.dist.sharding,
           .split = settings.split,
           .whole_fetches = settings.rollout && !settings.fetches_by_layer ? 1 : 0,
           .layer_passes = settings.rollout && settings.fetches_by_layer ? settings.rollout->new_tokens + 1 : 0,
           .shard_size = run_.dist.shard_size},
          options_.world_size, settings.passes_a_step);
      say(fmt::format("sent by each of {} processes a step, with dist.sharding {}\n  gradients {}, parameters {}\n",
                      options_.world_size, run_.dist.sharding, train::format_bytes(sent.gradients),
                      train::format_bytes(sent.parameters)));
      report_["communication"] = {
          {"sharding", run_.dist.sharding}, {"gradient_bytes", sent.gradients}, {"parameter_bytes", sent.parameters}};
    }
    report_["memory"] = std::move(document);
    if (fits) return;
    problems_.push_back(
        fmt::format("the run needs about {}, but there are {}; what lowers the need, the best first: {}",
                    train::format_bytes(total(plan)), train::format_bytes(available),
                    fmt::join(train::memory_advice(run_.levers), "; ")));
  }

  Run run_;
  CheckOptions options_;
  Json report_;
  std::string text_, example_;
  std::vector<std::string> problems_;
  std::shared_ptr<const data::Dataset> dataset_;
  std::vector<Length> lengths_;
  std::int64_t num_steps_ = 0;
};

template <class Options>
int check_run(const std::string& command, const Arguments& arguments) {
  Checked<Options> options;
  if (!parse_options("check " + command, "", arguments, options)) return 0;
  require_setting("check " + command, "model", options.run.model, "DIR");
  require_setting("check " + command, "data", options.run.data.path, "FILE");
  require_setting("check " + command, "images", options.run.images, "ROOT");
  if (options.check.world_size < 1) throw_invalid("world_size must be at least 1, but is {}", options.check.world_size);
  if (!options.check.device_memory.empty()) parse_bytes(options.check.device_memory);
  options.run.check();
  if (options.run.run.num_threads > 0) at::set_num_threads(static_cast<int>(options.run.run.num_threads));
  return Check(run_of(options.run), options.check).look(settings_to_json(options.run)) ? 0 : 1;
}

}  // namespace

int run_check(const Arguments& given) {
  Arguments arguments = given;
  const std::string command = take_checked_command(arguments);
  return command == "sft" ? check_run<train::SftOptions>(command, arguments)
                          : check_run<rl::GrpoOptions>(command, arguments);
}

}  // namespace thinkvg::tools
