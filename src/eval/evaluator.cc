#include "thinkvg/eval/evaluator.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <set>
#include <sstream>
#include <unordered_map>

#include "eval/confidence.h"
#include "eval/json_lines.h"
#include "eval/picture_order.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/core/random.h"
#include "thinkvg/eval/baselines.h"

namespace thinkvg::eval {
namespace {

namespace fs = std::filesystem;
using data::Sample;

constexpr const char* kPartialFile = "answers.partial.jsonl";

// What the model said to one question, and the picture that it saw.
struct Answer {
  std::string response;  // boxes in `frame`
  grounding::BoxFrame frame;
  grounding::ImageSize picture_size;
  fs::path picture;
  std::optional<double> confidence;
  std::int64_t num_tokens = 0;

  Json to_json(const std::string& id) const {
    return {{"id", id},
            {"response", response},
            {"frame", frame.name()},
            {"width", picture_size.width},
            {"height", picture_size.height},
            {"picture", picture.string()},
            {"confidence", confidence ? Json(*confidence) : Json()},
            {"num_tokens", num_tokens}};
  }
  static Answer from_json(const Json& line) {
    Answer answer;
    answer.response = line.at("response").get<std::string>();
    answer.frame = grounding::BoxFrame::parse(line.at("frame").get<std::string>());
    answer.picture_size = {line.at("width").get<std::int64_t>(), line.at("height").get<std::int64_t>()};
    answer.picture = line.at("picture").get<std::string>();
    if (line.at("confidence").is_number()) answer.confidence = line.at("confidence").get<double>();
    answer.num_tokens = line.at("num_tokens").get<std::int64_t>();
    return answer;
  }
};

using Answers = std::unordered_map<std::string, Answer>;  // by sample id

std::int64_t num_answered(const std::vector<Sample>& samples, const Answers& answers) {
  return std::count_if(samples.begin(), samples.end(),
                       [&](const Sample& sample) { return answers.contains(sample.id); });
}

std::string answer_line(const std::string& id, const Answer& answer) {
  return answer.to_json(id).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Answers read_answers(const std::string& lines) {
  Answers answers;
  std::istringstream stream(lines);
  for (std::string line; std::getline(stream, line);) {
    const Json json = Json::parse(line);
    answers.emplace(json.at("id").get<std::string>(), Answer::from_json(json));
  }
  return answers;
}

// The questions of a run, as they are asked.
struct Questions {
  std::vector<Sample> samples;  // with their references
  std::vector<Sample> asked;    // the same, with the picture that is shown
  SubsetCounts counts;
};

// Each picture stands in for another one: the pictures in a random order, each replaced by the next.
void shuffle_pictures(std::vector<Sample>& samples, std::int64_t seed) {
  std::set<std::string> known;
  for (const Sample& sample : samples) known.insert(sample.image);
  if (known.size() < 2) throw_failure("shuffle_pictures needs questions about two pictures or more");
  std::vector<std::string> order(known.begin(), known.end());
  RandomStream random({hash_key("shuffle pictures"), static_cast<std::uint64_t>(seed)});
  random.shuffle(order);
  std::unordered_map<std::string, std::string> next;
  for (std::size_t i = 0; i < order.size(); ++i) next[order[i]] = order[(i + 1) % order.size()];
  for (Sample& sample : samples) sample.image = next.at(sample.image);
}

// Questions at hand, all of them.
Questions questions_of(const data::Dataset& dataset, const EvalOptions& options) {
  Questions questions;
  for (std::int64_t i = 0; i < dataset.size(); ++i) questions.samples.push_back(dataset.get(i));
  questions.counts.used = questions.counts.all = dataset.size();
  questions.asked = questions.samples;
  if (options.shuffle_pictures) shuffle_pictures(questions.asked, options.seed);
  return questions;
}

Questions read_questions(const EvalOptions& options) {
  const auto whole = data::open_data(options.data);
  const auto dataset = data::with_pictures(whole, data::ImageFinder(options.images), options.data.min_hit_rate);
  Questions questions;
  SubsetCounts& counts = questions.counts;
  counts.without_picture = whole->size() - dataset->size();
  counts.bad_rows = std::ssize(whole->bad_rows());
  for (std::int64_t i = 0; i < dataset->size(); ++i) questions.samples.push_back(dataset->get(i));
  if (options.fuse_readers) questions.samples = fuse_readers(questions.samples);
  counts.all = std::ssize(questions.samples);
  if (questions.samples.empty()) throw_failure("{} holds no question", options.data.path);
  if (options.limit > 0 && options.limit < counts.all)
    questions.samples.resize(static_cast<std::size_t>(options.limit));
  counts.used = std::ssize(questions.samples);
  questions.asked = questions.samples;
  if (options.shuffle_pictures) shuffle_pictures(questions.asked, options.seed);
  return questions;
}

// The answers that an earlier, killed run of the same key left, and the place to keep new ones.
class PartialAnswers {
 public:
  PartialAnswers() = default;  // keeps nothing
  PartialAnswers(const fs::path& file, const std::string& key, bool resume) : file_(file) {
    std::string kept = Json({{"key", key}}).dump() + "\n";
    if (resume && fs::exists(file)) kept = read_kept(key, kept);
    write_file_atomically(file, kept);
    out_.emplace(file);
  }

  const Answers& answers() const { return answers_; }
  // Rank 0's answers, in every process.
  void share(dist::ProcessGroup& group) {
    if (group.size() == 1) return;
    std::string lines;
    for (const auto& [id, answer] : answers_) lines += answer_line(id, answer);
    answers_ = read_answers(group.broadcast_text(lines, "answers that are there"));
  }
  void add(const std::string& lines) {
    if (out_) out_->write(lines);
  }
  void remove() {
    if (!out_) return;
    out_.reset();
    fs::remove(file_);
  }

 private:
  // Lines up to the first that is cut off; only the head of a file of another key.
  std::string read_kept(const std::string& key, const std::string& head) {
    const std::string text = read_file(file_);
    std::string kept = head;
    bool first = true;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = text.find('\n', begin);
      if (end == std::string::npos) break;
      const std::string line = text.substr(begin, end - begin);
      begin = end + 1;
      const Json json = Json::parse(line, nullptr, false);
      if (!json.is_object()) break;
      if (first) {
        if (json.value("key", "") != key) {
          spdlog::warn("{} is of another evaluation and is replaced", file_.string());
          break;
        }
        first = false;
        continue;
      }
      answers_.emplace(json.at("id").get<std::string>(), Answer::from_json(json));
      kept += line + "\n";
    }
    return kept;
  }

  fs::path file_;
  Answers answers_;
  std::optional<AppendFile> out_;
};

// Everything that answers depend on; not what is made of them, how many are asked, or how they share the machine.
std::string key_of(const EvalOptions& options, const Provenance& provenance) {
  EvalOptions asked = options;
  asked.out = asked.name = asked.images = asked.judge_scores = "";
  asked.json = asked.resume = asked.baselines = asked.detection = false;
  asked.judge = rewards::JudgeOptions();
  asked.metrics = MetricOptions();
  if (!asked.shuffle_pictures) asked.limit = 0;
  asked.engine = {.exact = options.engine.exact, .quantization = options.engine.quantization};
  asked.batch_questions = asked.num_threads = 0;
  asked.processes = 1;
  asked.dist = {};
  return sha256_text(settings_to_json(asked).dump() + provenance.model_sha256 + provenance.data_sha256);
}

struct Asked {
  Answers answers;
  std::int64_t new_tokens = 0;  // of this process
  double seconds = 0;
};

class Asker {
 public:
  Asker(const models::ModelBundle& bundle, const EvalOptions& options, dist::ProcessGroup& group)
      : bundle_(bundle),
        group_(group),
        options_(options),
        builder_(
            bundle,
            {options.prompt, options.images, true, {std::int64_t{64} << 20, at::get_num_threads(), options.pictures}}),
        engine_(*bundle.model, options.engine) {
    if (options.blind) builder_.encoder().set_blank(128);
  }

  // Asks batch by batch, each process its share of what has no answer yet.
  Asked ask(const std::vector<Sample>& samples, PartialAnswers& partial) {
    Asked asked;
    asked.answers = partial.answers();
    std::vector<Sample> open = by_picture(samples);
    std::erase_if(open, [&](const Sample& sample) { return asked.answers.contains(sample.id); });
    const std::int64_t total = std::ssize(samples), num_open = std::ssize(open);
    num_done_ = total - num_open;
    if (group_.is_main()) progress_ = std::make_unique<Progress>("eval", total, num_done_);
    std::vector<Sample> own = own_share(open, 0);
    for (std::int64_t begin = 0; begin < num_open; begin += options_.batch_questions) {
      const std::int64_t end = std::min(num_open, begin + options_.batch_questions);
      group_.set_phase(fmt::format("questions {} to {}", begin, end), 0);
      std::vector<Sample> next = own_share(open, end);
      const std::vector<std::string> parts = group_.gather_texts(ask_batch(own, next, asked, partial), "answers");
      for (std::size_t rank = 0; rank < parts.size(); ++rank) {
        if (static_cast<std::int64_t>(rank) == group_.rank()) continue;
        partial.add(parts[rank]);
        asked.answers.merge(read_answers(parts[rank]));
      }
      num_done_ = total - num_open + end;
      own = std::move(next);
    }
    if (progress_) progress_->finish();
    return asked;
  }

 private:
  // This process's questions of the batch that begins at `begin`: neighbours, which share pictures.
  std::vector<Sample> own_share(const std::vector<Sample>& open, std::int64_t begin) const {
    const std::int64_t count = std::min(std::ssize(open) - begin, options_.batch_questions);
    const auto place = [&](std::int64_t rank) { return open.begin() + begin + count * rank / group_.size(); };
    return {place(group_.rank()), place(group_.rank() + 1)};
  }

  // Keeps each answer as it ends, and returns their lines. The pictures of `next` are read meanwhile.
  std::string ask_batch(const std::vector<Sample>& batch, const std::vector<Sample>& next, Asked& asked,
                        PartialAnswers& partial) {
    if (batch.empty()) return {};
    const std::vector<generation::Question> questions = builder_.build(batch);
    builder_.prefetch(next);
    std::vector<generation::GenerationRequest> requests;
    for (const generation::Question& question : questions)
      requests.push_back({question.prompt,
                          question.grids,
                          {question.features},
                          1,
                          {hash_key("eval"), static_cast<std::uint64_t>(options_.seed), hash_key(question.sample.id)}});
    std::string lines;
    const auto start = std::chrono::steady_clock::now();
    std::int64_t batch_tokens = 0;
    engine_.on_finish([&](std::int64_t request, std::int64_t, const generation::Completion& completion) {
      const auto i = static_cast<std::size_t>(request);
      Answer answer = answer_of(questions[i], completion);
      batch_tokens += answer.num_tokens;
      const std::string line = answer_line(batch[i].id, answer);
      asked.answers.insert_or_assign(batch[i].id, std::move(answer));
      partial.add(line);
      lines += line;
      ++num_done_;
      if (!progress_) return;
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
      const double rate = static_cast<double>(asked.new_tokens + batch_tokens) / (asked.seconds + spent.count());
      progress_->update(num_done_, fmt::format("{} tokens/s", format_count(std::llround(rate))));
    });
    engine_.generate(requests, options_.sampling);
    engine_.on_finish(nullptr);
    asked.new_tokens += engine_.stats().new_tokens;
    asked.seconds += engine_.stats().seconds;
    return lines;
  }

  Answer answer_of(const generation::Question& question, const generation::Completion& completion) const {
    const auto prefix = [&](std::size_t num_tokens) {
      return bundle_.tokenizer->decode(std::span(completion.ids).first(num_tokens));
    };
    return {prefix(completion.ids.size()),
            question.frame,
            question.original,
            question.picture,
            answer_confidence(prefix, completion.logprobs),
            static_cast<std::int64_t>(completion.ids.size())};
  }

  models::ModelBundle bundle_;
  dist::ProcessGroup& group_;
  EvalOptions options_;
  generation::QuestionBuilder builder_;
  generation::RolloutEngine engine_;
  std::unique_ptr<Progress> progress_;  // where this process tells it
  std::int64_t num_done_ = 0;           // questions
};

void check(const EvalOptions& options) {
  models::dtype_setting(options.dtype);
  options.metrics.check();
  options.sampling.check();
  if (options.judge.is_given() && !options.judge_scores.empty())
    throw_invalid("give judge_scores, a file of grades, or a judge to ask, not both");
  if (options.batch_questions < 1) throw_invalid("batch_questions must be at least 1");
  if (options.num_threads > 0) at::set_num_threads(static_cast<int>(options.num_threads));
}

std::string prompt_text(const EvalOptions& options) {
  std::string text = "the question and its choices in the model's chat markup";
  if (!options.prompt.system.empty()) text += fmt::format("; system: {}", options.prompt.system);
  if (!options.prompt.instruction.empty()) text += fmt::format("; then: {}", options.prompt.instruction);
  return text;
}

// Grades of a file, or of the judge that is asked now.
JudgeFile judge_answers(const EvalOptions& options, const Questions& questions, const Asked& asked,
                        const Judge& judge) {
  if (!options.judge_scores.empty()) return read_judge_scores(options.judge_scores);
  if (!judge) return {};
  std::vector<JudgeRequest> requests;
  for (const Sample& sample : questions.samples) {
    const Answer& answer = asked.answers.at(sample.id);
    const auto parsed = grounding::parse_response(answer.response, answer.frame, false);
    requests.push_back({sample, parsed.has_answer ? parsed.answer : answer.response, parsed.think});
  }
  return run_judge(requests, judge, {options.out.empty() ? fs::path() : fs::path(options.out) / "judge.jsonl"});
}

struct Source {
  const models::ModelBundle& bundle;
  fs::path weights;  // empty: the model is only in memory
  dist::ProcessGroup& group;
};

Evaluation evaluate_source(const Source& source, const EvalOptions& options, const Questions& questions,
                           const Judge& judge) {
  const std::int64_t count = questions.counts.used;
  Provenance provenance{subset_text(questions.counts, options.data),
                        prompt_text(options),
                        "",
                        source.weights.empty() ? "" : sha256_path(source.weights),
                        options.data.path.empty() ? "" : sha256_path(options.data.path),
                        options.seed};
  const bool is_main = source.group.is_main();
  if (!options.out.empty() && is_main) fs::create_directories(options.out);
  const bool keeps = !options.out.empty() && !source.weights.empty() && is_main;
  PartialAnswers partial =
      keeps ? PartialAnswers(fs::path(options.out) / kPartialFile, key_of(options, provenance), options.resume)
            : PartialAnswers();
  partial.share(source.group);
  if (!partial.answers().empty())
    spdlog::info("eval: {} of {} answers are there already",
                 format_count(num_answered(questions.samples, partial.answers())), format_count(count));
  spdlog::info("eval: {} questions, model {}{}{}", format_count(count), options.model,
               options.blind ? ", grey pictures" : "", options.shuffle_pictures ? ", shuffled pictures" : "");
  const Asked asked = Asker(source.bundle, options, source.group).ask(questions.asked, partial);
  if (!is_main) return {};
  const JudgeFile judged = judge_answers(options, questions, asked, judge);

  Evaluation evaluation;
  std::int64_t num_tokens = 0;
  for (const Sample& sample : questions.samples) {
    const Answer& answer = asked.answers.at(sample.id);
    const grounding::ImageGeometry geometry(answer.picture_size);
    evaluation.questions.push_back(score_question({sample, answer.response, answer.frame, geometry}, options.metrics));
    evaluation.questions.back().confidence = answer.confidence;
    num_tokens += answer.num_tokens;
  }
  const std::int64_t num_judged = apply_judge_scores(evaluation.questions, judged.scores);
  if (num_judged > 0) provenance.judge = judged.judge.empty() ? "unnamed" : judged.judge;
  evaluation.provenance = provenance;
  evaluation.scores = summarize(evaluation.questions, options.metrics);
  if (options.detection)
    evaluation.detection = average_precision(detection_images(questions.samples, evaluation.questions));

  Json& document = evaluation.document;
  document = scores_to_json(evaluation.scores);
  if (!options.name.empty()) document["name"] = options.name;
  document["blind"] = options.blind;
  document["shuffled_pictures"] = options.shuffle_pictures;
  if (!options.dtype.empty()) document["dtype"] = options.dtype;
  if (options.engine.quantization != "none") document["quantization"] = options.engine.quantization;
  document["new_tokens"] = num_tokens;
  document["generation_seconds"] = asked.seconds;
  if (judge || !options.judge_scores.empty()) document["num_judged"] = num_judged;
  document["provenance"] = provenance_to_json(provenance);
  if (evaluation.detection) document["detection"] = detection_to_json(*evaluation.detection);
  if (options.baselines) document["baselines"] = baselines_to_json(questions.samples, options.metrics);
  if (options.out.empty()) return evaluation;

  std::string lines;
  for (std::size_t i = 0; i < questions.samples.size(); ++i) {
    const Sample& sample = questions.samples[i];
    const Answer& answer = asked.answers.at(sample.id);
    const grounding::ImageGeometry geometry(answer.picture_size);
    lines += prediction_line({sample, evaluation.questions[i], answer.response, answer.frame, geometry, answer.picture,
                              answer.picture_size})
                 .dump(-1, ' ', false, Json::error_handler_t::replace) +
             "\n";
  }
  const fs::path out = options.out;
  std::map<std::string, fs::path> inputs;
  if (!options.data.path.empty()) inputs["data"] = options.data.path;
  if (!source.weights.empty()) inputs["weights"] = source.weights;
  write_file_atomically(out / "config.yaml", to_yaml(settings_to_json(options)));
  write_file_atomically(out / "predictions.jsonl", lines);
  write_file_atomically(out / "manifest.json", make_manifest("eval", options.seed, inputs).dump(2) + "\n");
  write_file_atomically(out / "metrics.json", document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  partial.remove();
  return evaluation;
}

}  // namespace

Evaluation evaluate(const EvalOptions& options, dist::ProcessGroup& group, const Judge& judge) {
  try {
    check(options);
    const fs::path folder = models::resolve_model_folder(options.model);
    const models::ModelBundle bundle = models::load_bundle(folder, models::dtype_setting(options.dtype),
                                                           nn::device_setting(options.device, group.local_rank()));
    for (const at::Tensor& parameter : bundle.model->parameters()) parameter.set_requires_grad(false);
    // A model in several files is told by the whole folder.
    const fs::path single = folder / "model.safetensors";
    return evaluate_source({bundle, fs::exists(single) ? single : folder, group}, options, read_questions(options),
                           judge);
  } catch (const std::exception& error) {
    group.fail(error);
    throw;
  }
}

Evaluation evaluate(const EvalOptions& options, const Judge& judge) {
  dist::ProcessGroup alone;
  return evaluate(options, alone, judge);
}

Evaluation evaluate(const models::ModelBundle& bundle, const EvalOptions& options, const Judge& judge) {
  check(options);
  dist::ProcessGroup alone;
  return evaluate_source({bundle, {}, alone}, options, read_questions(options), judge);
}

Evaluation evaluate(const models::ModelBundle& bundle, const data::Dataset& questions, const EvalOptions& options) {
  check(options);
  if (questions.size() == 0) throw_invalid("there is no question to evaluate on");
  dist::ProcessGroup alone;
  return evaluate_source({bundle, {}, alone}, options, questions_of(questions, options), Judge());
}

}  // namespace thinkvg::eval
