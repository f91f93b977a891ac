#include "thinkvg/eval/evaluator.h"

#include <ATen/Parallel.h>

#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/core/random.h"

namespace thinkvg::eval {
namespace {

Json regions_to_json(const std::vector<grounding::Region>& regions) {
  Json list = Json::array();
  for (const grounding::Region& region : regions)
    list.push_back({{"ref", region.name}, {"box", {region.box.x1, region.box.y1, region.box.x2, region.box.y2}}});
  return list;
}

std::vector<grounding::Region> convert(const std::vector<grounding::Region>& regions,
                                       const grounding::ImageGeometry& geometry, const grounding::BoxFrame& to) {
  std::vector<grounding::Region> converted;
  for (const grounding::Region& region : regions) converted.push_back({region.name, geometry.convert(region.box, to)});
  return converted;
}

// One line of predictions.jsonl; every box in it is in the reference's frame.
Json prediction_line(const generation::Question& question, const std::string& response, const QuestionScore& score) {
  const data::Sample& sample = question.sample;
  const grounding::ImageGeometry geometry = question.geometry();
  return {
      {"id", sample.id},
      {"image", sample.image},
      {"image_file", std::filesystem::absolute(question.picture).string()},
      {"width", question.original.width},
      {"height", question.original.height},
      {"type", data::question_type_name(sample.type)},
      {"question", sample.question},
      {"choices", sample.choices},
      {"reference", {{"answer", sample.answer}, {"think", sample.think}, {"regions", regions_to_json(sample.regions)}}},
      {"frame", sample.frame.name()},
      {"response", grounding::convert_inline_boxes(response, geometry, question.frame, sample.frame)},
      {"parsed",
       {{"complete", score.response.complete},
        {"problem", score.problem},
        {"answer", score.response.answer},
        {"think", grounding::convert_inline_boxes(score.response.think, geometry, question.frame, sample.frame)},
        {"regions", regions_to_json(score.regions)},
        {"think_regions", regions_to_json(convert(score.response.think_regions, geometry, sample.frame))}}},
      {"a_score", score.a_score ? Json(*score.a_score) : Json()},
      {"v_score", score.v_score ? Json(*score.v_score) : Json()}};
}

}  // namespace

Evaluation evaluate(const EvalOptions& options) {
  options.metrics.check();
  options.sampling.check();
  if (options.batch_questions < 1) throw_invalid("batch_questions must be at least 1");
  if (options.num_threads > 0) at::set_num_threads(static_cast<int>(options.num_threads));
  std::shared_ptr<const data::Dataset> dataset = data::open_dataset(options.data);
  for (const data::BadRow& bad : dataset->bad_rows())
    spdlog::warn("{}, row {} is left out: {}", options.data, bad.row, bad.reason);
  dataset = data::with_pictures(dataset, data::ImageFinder(options.images), options.min_hit_rate);
  std::int64_t count = dataset->size();
  if (options.limit > 0) count = std::min(count, options.limit);
  if (count == 0) throw_failure("{} holds no question", options.data);

  const std::filesystem::path folder = models::resolve_model_folder(options.model);
  const models::ModelBundle bundle = models::load_bundle(folder);
  for (const at::Tensor& parameter : bundle.model->parameters()) parameter.set_requires_grad(false);
  generation::QuestionBuilder builder(
      bundle,
      {options.prompt, options.images, true, {std::int64_t{64} << 20, at::get_num_threads(), options.pictures}});
  if (options.blind) builder.encoder().set_blank(128);
  generation::RolloutEngine engine(*bundle.model, options.engine);
  spdlog::info("eval: {} questions, model {}{}", format_count(count), folder.string(),
               options.blind ? ", grey pictures" : "");

  Evaluation evaluation;
  std::string lines;
  Progress progress("eval", count);
  std::int64_t new_tokens = 0;
  double seconds = 0;
  for (std::int64_t begin = 0; begin < count; begin += options.batch_questions) {
    const std::int64_t end = std::min(count, begin + options.batch_questions);
    std::vector<data::Sample> samples;
    for (std::int64_t i = begin; i < end; ++i) samples.push_back(dataset->get(i));
    const std::vector<generation::Question> questions = builder.build(samples);
    std::vector<generation::GenerationRequest> requests;
    for (const generation::Question& question : questions)
      requests.push_back({question.prompt,
                          question.grids,
                          {question.features},
                          1,
                          {hash_key("eval"), static_cast<std::uint64_t>(options.seed), hash_key(question.sample.id)}});
    const auto completions = engine.generate(requests, options.sampling);
    new_tokens += engine.stats().new_tokens;
    seconds += engine.stats().seconds;
    for (std::size_t i = 0; i < questions.size(); ++i) {
      const std::string response = bundle.tokenizer->decode(completions[i].front().ids);
      const grounding::ImageGeometry geometry = questions[i].geometry();
      evaluation.questions.push_back(
          score_question({questions[i].sample, response, questions[i].frame, geometry}, options.metrics));
      lines += prediction_line(questions[i], response, evaluation.questions.back())
                   .dump(-1, ' ', false, Json::error_handler_t::replace) +
               "\n";
    }
    progress.update(end, fmt::format("{} tokens/s", format_count(static_cast<std::int64_t>(
                                                        static_cast<double>(new_tokens) / std::max(seconds, 1e-9)))));
  }
  progress.finish();
  evaluation.scores = summarize(evaluation.questions, options.metrics);
  if (!options.out.empty()) {
    const std::filesystem::path out = options.out;
    std::filesystem::create_directories(out);
    Json document = scores_to_json(evaluation.scores);
    if (!options.name.empty()) document["name"] = options.name;
    document["blind"] = options.blind;
    document["new_tokens"] = new_tokens;
    document["generation_seconds"] = seconds;
    write_file_atomically(out / "config.yaml", to_yaml(settings_to_json(options)));
    write_file_atomically(out / "predictions.jsonl", lines);
    write_file_atomically(
        out / "manifest.json",
        make_manifest("eval", options.seed, {{"data", options.data}, {"weights", folder / "model.safetensors"}})
                .dump(2) +
            "\n");
    write_file_atomically(out / "metrics.json", document.dump(2) + "\n");
  }
  return evaluation;
}

}  // namespace thinkvg::eval
