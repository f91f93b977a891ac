// Asks a model about a picture: ask MODEL_FOLDER PICTURE "QUESTION" prints the answer and its boxes in pixels.
#include <thinkvg/generation/question.h>
#include <thinkvg/generation/rollout_engine.h>
#include <thinkvg/grounding/response.h>

#include <cstdio>
using namespace thinkvg;

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const models::ModelBundle bundle = models::load_bundle(argv[1]);
  const auto picture = std::filesystem::absolute(argv[2]);
  generation::QuestionBuilder builder(bundle, {.images = picture.parent_path()});
  data::Sample sample;
  sample.image = picture.filename();
  sample.question = argv[3];
  const generation::Question question = builder.build({sample}).front();

  generation::RolloutEngine engine(*bundle.model, {});
  const auto completions = engine.generate({{question.prompt, question.grids, {question.features}}},
                                           {.max_new_tokens = 512, .temperature = 0});
  const std::string text = bundle.tokenizer->decode(completions.front().front().ids);
  const auto parsed = grounding::parse_response(text, question.frame);
  std::printf("answer: %s\n", (parsed.has_answer ? parsed.answer : "none, " + parsed.problem).c_str());
  for (const grounding::Region& region : parsed.regions) {
    const grounding::Box box = question.geometry().convert(region.box, grounding::BoxFrame::original());
    std::printf("%s: %.0f %.0f %.0f %.0f\n", region.name.c_str(), box.x1, box.y1, box.x2, box.y2);
  }
}
