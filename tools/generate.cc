#include <spdlog/fmt/fmt.h>

#include <cstdio>

#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"
#include "thinkvg/generation/question.h"
#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/grounding/response.h"
#include "tools/commands.h"

namespace thinkvg::tools {
namespace {

struct GenerateOptions {
  std::string model;
  std::string image;
  std::string question;
  std::string frame = "original";
  std::string overlay;
  std::int64_t seed = 0;
  bool json = false;
  std::int64_t max_new_tokens = 512;
  double temperature = 0;
  std::int64_t top_k = 0;
  double top_p = 1.0;
  text::PromptOptions prompt;

  void visit(SettingsVisitor& v) {
    v.setting("model", model, "Model folder, or run folder (its newest checkpoint).");
    v.setting("image", image, "Picture to ask about (JPEG, PNG).");
    v.setting("question", question, "What to ask.");
    v.setting("frame", frame, "Frame of the printed boxes: original, letterbox-336, unit, thousand, ..");
    v.setting("overlay", overlay, "PNG or JPEG file to write the picture with its boxes to.");
    v.setting("seed", seed, "Seed of sampling.");
    v.setting("json", json, "Print one JSON document: prompt_ids, ids, text, logprobs, answer, boxes.");
    v.setting("max_new_tokens", max_new_tokens, "The answer is cut behind this many tokens.");
    v.setting("temperature", temperature, "Logits are divided by it; 0 takes the likeliest token.");
    v.setting("top_k", top_k, "Sample among this many likeliest tokens; 0: all.");
    v.setting("top_p", top_p, "Sample among the likeliest tokens that together have this probability.");
    v.section("prompt", prompt, "How the question is put.");
  }
};

// A picture file as a question about it.
data::Sample sample_of(const GenerateOptions& options) {
  data::Sample sample;
  sample.id = options.image;
  sample.image = std::filesystem::path(options.image).filename().string();
  sample.question = options.question;
  return sample;
}

}  // namespace

int run_generate(const Arguments& arguments) {
  GenerateOptions options;
  if (!parse_options("generate", "ask a model about a picture", arguments, options)) return 0;
  require_setting("generate", "model", options.model, "DIR");
  require_setting("generate", "image", options.image, "FILE");
  require_setting("generate", "question", options.question, "TEXT");
  const grounding::BoxFrame shown = grounding::BoxFrame::parse(options.frame);
  if (!std::filesystem::is_regular_file(options.image)) throw_failure("there is no picture {}", options.image);

  const models::ModelBundle bundle = models::load_bundle(models::resolve_model_folder(options.model));
  const std::filesystem::path root = std::filesystem::absolute(options.image).parent_path();
  generation::QuestionBuilder builder(bundle, {options.prompt, root.string(), true, {}});
  const generation::Question question = builder.build({sample_of(options)}).front();
  generation::RolloutEngine engine(*bundle.model, {1});
  std::vector<std::int64_t> ids;
  std::size_t printed = 0;
  if (!options.json) {
    engine.on_token([&](std::int64_t, std::int64_t, std::int64_t id) {
      ids.push_back(id);
      const std::string text = bundle.tokenizer->decode(ids);
      if (text.size() <= printed || text.ends_with("\xEF\xBF\xBD")) return;
      fmt::print("{}", text.substr(printed));
      std::fflush(stdout);
      printed = text.size();
    });
  }
  const generation::Completion completion =
      engine
          .generate({{question.prompt,
                      question.grids,
                      {question.features},
                      1,
                      {hash_key("generate"), static_cast<std::uint64_t>(options.seed)}}},
                    {options.max_new_tokens, options.temperature, options.top_k, options.top_p})
          .front()
          .front();
  const std::string text = bundle.tokenizer->decode(completion.ids);
  const grounding::ParsedResponse parsed = grounding::parse_response(text, question.frame);
  const grounding::ImageGeometry geometry = question.geometry();

  Json boxes = Json::array();
  std::vector<image::DrawnBox> drawn;
  for (const grounding::Region& region : parsed.regions) {
    const grounding::Box box = geometry.convert(region.box, shown);
    boxes.push_back({{"ref", region.name}, {"box", {box.x1, box.y1, box.x2, box.y2}}});
    drawn.push_back({region.box, region.name, 255, 140, 0, false});
  }
  if (options.json) {
    const Json document = {{"prompt_ids", question.prompt.ids},
                           {"ids", completion.ids},
                           {"text", text},
                           {"logprobs", completion.logprobs},
                           {"finish", completion.finish == generation::FinishReason::stop ? "stop" : "length"},
                           {"think", parsed.think},
                           {"answer", parsed.has_answer ? Json(parsed.answer) : Json()},
                           {"boxes", boxes},
                           {"frame", shown.name()},
                           {"text_frame", question.frame.name()},
                           {"problem", parsed.problem}};
    fmt::print("{}\n", document.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print("\n\nanswer: {}\n", parsed.has_answer ? parsed.answer : "none (" + parsed.problem + ")");
    for (const Json& box : boxes)
      fmt::print("box: {} [{:.0f}, {:.0f}, {:.0f}, {:.0f}] ({})\n", box["ref"].get<std::string>(),
                 box["box"][0].get<double>(), box["box"][1].get<double>(), box["box"][2].get<double>(),
                 box["box"][3].get<double>(), shown.name());
  }
  if (!options.overlay.empty())
    image::write_picture(image::draw_boxes(image::read_picture(options.image), drawn), options.overlay);
  return 0;
}

}  // namespace thinkvg::tools
