#include <spdlog/fmt/fmt.h>
#include <spdlog/spdlog.h>

#include <condition_variable>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/interrupt.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/images.h"
#include "thinkvg/data/options.h"
#include "thinkvg/generation/async_engine.h"
#include "thinkvg/generation/prompt_builder.h"
#include "thinkvg/grounding/response.h"
#include "thinkvg/grounding/sentences.h"
#include "thinkvg/image/picture.h"
#include "thinkvg/nn/device.h"
#include "tools/commands.h"

namespace thinkvg::tools {
namespace {

namespace fs = std::filesystem;

struct GenerateOptions {
  std::string model;
  std::string dtype;
  std::string device = "auto";
  std::vector<std::string> image;
  std::string question;
  data::DataOptions data;
  std::string images;
  std::string out;
  bool resume = false;
  std::string frame = "original";
  std::string overlay;
  bool json = false;
  std::int64_t seed = 0;
  std::int64_t num_completions = 1;
  std::vector<std::string> stop;
  std::int64_t top_logprobs = 0;
  generation::SamplingOptions sampling = {.max_new_tokens = 512, .temperature = 0};
  text::PromptOptions prompt;
  image::ReadOptions pictures;
  generation::EngineOptions engine;

  void visit(SettingsVisitor& v) {
    v.setting("model", model, "Model folder, or run folder (its newest checkpoint).");
    v.setting("dtype", dtype, models::kDtypeHelp);
    v.setting("device", device, nn::kDeviceHelp);
    v.setting("image", image, "Picture to ask about (JPEG, PNG, DICOM), or several, separated by commas.");
    v.setting("question", question, "What to ask.");
    v.section("data", data, "Instead of picture and question: a data set whose questions are asked.");
    v.setting("images", images, "Root folder of the data set's pictures, or several separated by commas.");
    v.setting("out", out, "Answers to a data set, as JSON lines that `score` reads.");
    v.setting("resume", resume, "Go on with an `out` that is there: ask only what it does not hold.");
    v.setting("frame", frame, "Frame of the printed boxes: original, letterbox-336, unit, thousand, ..");
    v.setting("overlay", overlay,
              "PNG or JPEG file to write the picture with its boxes to; with a data set, a folder for one each.");
    v.setting("json", json, "Print one JSON document: prompt_ids, ids, text, logprobs, answer, boxes, sentences.");
    v.setting("seed", seed, "Seed of sampling.");
    v.setting("num_completions", num_completions, "Answers to each question.");
    v.setting("stop", stop, "Texts that end an answer, separated by commas.");
    v.setting("top_logprobs", top_logprobs, "With --json: as many of the likeliest ids with each token.");
    sampling.visit(v);
    v.section("prompt", prompt, "How the question is put.");
    v.section("pictures", pictures, "How picture files are read.");
    v.section("engine", engine, "How completions are computed.");
  }
  void check() const {
    sampling.check();
    models::dtype_setting(dtype);
    if (num_completions < 1) throw_invalid("num_completions must be at least 1, but is {}", num_completions);
    if (top_logprobs < 0) throw_invalid("top_logprobs must be at least 0, but is {}", top_logprobs);
    if (data.path.empty()) {
      require_setting("generate", "image", image.empty() ? "" : image.front(), "FILE, or --data FILE");
      require_setting("generate", "question", question, "TEXT");
      if (!out.empty()) throw_invalid("--out is for the answers to a data set (--data); use --json here");
    } else {
      require_setting("generate", "out", out, "FILE.jsonl");
      if (!image.empty() || !question.empty())
        throw_invalid("--data asks its own questions; leave out --image and --question");
      if (json) throw_invalid("--json prints one answer; the answers to a data set go to --out");
    }
  }
};

// A question with the files of its pictures.
struct Asked {
  std::string id;
  std::string question;
  std::vector<std::string> files;  // contents
  std::vector<std::string> names;
  std::vector<std::uint64_t> stream;
};

// The completions of one request, as the engine's thread brings them.
struct Answers {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<generation::Completion> completions;
  std::int64_t remaining = 0;
  std::exception_ptr error;

  bool done() {
    const std::lock_guard lock(mutex);
    return remaining == 0;
  }
  const std::vector<generation::Completion>& wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return remaining == 0; });
    if (error) std::rethrow_exception(error);
    return completions;
  }
};

class Generator {
 public:
  explicit Generator(const GenerateOptions& options)
      : options_(options),
        shown_(grounding::BoxFrame::parse(options.frame)),
        builder_(models::load_bundle(models::resolve_model_folder(options.model), models::dtype_setting(options.dtype),
                                     nn::device_setting(options.device)),
                 {options.pictures, 512}),
        engine_(builder_.bundle(), options.engine) {}

  generation::BuiltPrompt build(const Asked& asked) {
    std::vector<std::shared_ptr<const models::EncodedPicture>> pictures;
    for (std::size_t i = 0; i < asked.files.size(); ++i)
      pictures.push_back(builder_.encode(asked.files[i], asked.names[i]));
    return builder_.build(generation::question_messages(options_.prompt, asked.question, asked.files.size()), pictures);
  }

  // Starts the answers; `on_text` gets the first one's text as it comes, on the engine's thread.
  std::shared_ptr<Answers> start(const generation::BuiltPrompt& built, const Asked& asked,
                                 const std::function<void(const std::string&)>& on_text = {}) {
    auto answers = std::make_shared<Answers>();
    answers->remaining = options_.num_completions;
    answers->completions.resize(static_cast<std::size_t>(options_.num_completions));
    generation::GenerationRequest request = built.request(options_.num_completions, asked.stream);
    request.stop = options_.stop;
    request.num_top_logprobs = options_.top_logprobs;
    generation::RequestEvents events;
    events.on_token = [on_text](std::int64_t completion, const generation::DrawnToken& token) {
      if (on_text && completion == 0) on_text(token.text);
    };
    events.on_finish = [answers](std::int64_t completion, const generation::Completion& result) {
      const std::lock_guard lock(answers->mutex);
      answers->completions[static_cast<std::size_t>(completion)] = result;
      --answers->remaining;
      answers->changed.notify_all();
    };
    events.on_error = [answers](std::exception_ptr error) {
      const std::lock_guard lock(answers->mutex);
      answers->error = std::move(error);
      answers->remaining = 0;
      answers->changed.notify_all();
    };
    engine_.submit(std::move(request), options_.sampling, std::move(events));
    return answers;
  }

  Json boxes_json(const std::vector<grounding::Region>& regions, const generation::BuiltPrompt& built) const {
    Json boxes = Json::array();
    if (built.pictures.empty()) return boxes;
    const grounding::ImageGeometry geometry(built.original());
    for (const grounding::Region& region : regions) {
      const grounding::Box box = geometry.convert(region.box, shown_);
      boxes.push_back({{"ref", region.name}, {"box", {box.x1, box.y1, box.x2, box.y2}}});
    }
    return boxes;
  }

  // What an answer says, boxes in the frame that was asked for.
  Json answer_json(const generation::Completion& completion, const generation::BuiltPrompt& built) const {
    const grounding::ParsedResponse parsed = grounding::parse_response(completion.text, built.frame());
    Json sentences = Json::array();
    for (const grounding::GroundedSentence& sentence : grounding::grounded_sentences(completion.text, built.frame()))
      sentences.push_back({{"text", sentence.text}, {"boxes", boxes_json(sentence.regions, built)}});
    return {{"finish", completion.finish == generation::FinishReason::stop ? "stop" : "length"},
            {"think", parsed.think},
            {"answer", parsed.has_answer ? Json(parsed.answer) : Json()},
            {"boxes", boxes_json(parsed.regions, built)},
            {"sentences", sentences},
            {"frame", shown_.name()},
            {"text_frame", built.frame().name()},
            {"problem", parsed.problem}};
  }

  // `file` is the first picture's content.
  void write_overlay(const generation::Completion& completion, const generation::BuiltPrompt& built,
                     const std::string& file, const fs::path& to) const {
    const grounding::ParsedResponse parsed = grounding::parse_response(completion.text, built.frame());
    std::vector<image::DrawnBox> drawn;
    for (const grounding::Region& region : parsed.think_regions)
      drawn.push_back({region.box, region.name, 90, 170, 255, true});
    for (const grounding::Region& region : parsed.regions)
      drawn.push_back({region.box, region.name, 255, 140, 0, false});
    image::write_picture(image::draw_boxes(image::decode_picture(file, to.string(), options_.pictures), drawn), to);
  }

 private:
  const GenerateOptions& options_;
  grounding::BoxFrame shown_;
  generation::PromptBuilder builder_;
  generation::AsyncEngine engine_;
};

std::string line_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

int ask_one(const GenerateOptions& options) {
  for (const std::string& file : options.image)
    if (!fs::is_regular_file(file)) throw_failure("there is no picture {}", file);
  Asked asked;
  asked.question = options.question;
  asked.names = options.image;
  for (const std::string& file : options.image) asked.files.push_back(read_file(file));
  asked.stream = {hash_key("generate"), static_cast<std::uint64_t>(options.seed)};
  Generator generator(options);
  const generation::BuiltPrompt built = generator.build(asked);
  for (std::size_t i = 0; i < built.pictures.size(); ++i)
    spdlog::info("{}: {} x {} pixels, {} image tokens", asked.names[i], built.pictures[i]->original.width,
                 built.pictures[i]->original.height, built.pictures[i]->features.size(0));
  std::size_t printed = 0;
  std::function<void(const std::string&)> print;
  if (!options.json) {
    print = [&printed](const std::string& text) {
      fmt::print("{}", text);
      std::fflush(stdout);
      printed += text.size();
    };
  }
  const auto answers = generator.start(built, asked, print);
  const std::vector<generation::Completion>& completions = answers->wait();
  Json all = Json::array();
  for (const generation::Completion& completion : completions) {
    Json answer = {{"prompt_ids", built.prompt.ids},
                   {"ids", completion.ids},
                   {"text", completion.text},
                   {"logprobs", completion.logprobs}};
    if (options.top_logprobs > 0) {
      answer["top_logprobs"] = Json::array();
      for (const generation::TopLogprobs& top : completion.top) answer["top_logprobs"].push_back(top);
    }
    answer.update(generator.answer_json(completion, built));
    all.push_back(std::move(answer));
  }
  if (options.json) {
    Json document = all.front();
    if (options.num_completions > 1) document["completions"] = all;
    fmt::print("{}\n", document.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    for (std::size_t i = 0; i < completions.size(); ++i) {
      fmt::print("{}\n\n", i == 0 ? completions[i].text.substr(std::min(printed, completions[i].text.size()))
                                  : completions[i].text);
      const Json& answer = all[i];
      fmt::print("answer: {}\n", answer["answer"].is_string() ? answer["answer"].get<std::string>()
                                                              : "none (" + answer["problem"].get<std::string>() + ")");
      const int digits = options.frame == "unit" ? 4 : 0;
      for (const Json& box : answer["boxes"]) {
        std::string numbers;
        for (const Json& number : box["box"])
          numbers += fmt::format("{}{:.{}f}", numbers.empty() ? "" : ", ", number.get<double>(), digits);
        fmt::print("box: {} [{}] ({})\n", box["ref"].get<std::string>(), numbers, options.frame);
      }
    }
  }
  if (!options.overlay.empty())
    generator.write_overlay(completions.front(), built, asked.files.front(), options.overlay);
  return 0;
}

// The ids that a file of answers holds; a last line that was cut off is taken away.
std::set<std::string> answered_ids(const fs::path& file) {
  std::set<std::string> ids;
  const std::string text = read_file(file);
  std::size_t begin = 0;
  for (std::size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const Json line = Json::parse(text.substr(begin, end - begin), nullptr, false);
    if (!line.is_object() || !line.contains("id") || !line["id"].is_string())
      throw_failure("{}: a line that is no answer of this command: '{:.80}'", file.string(),
                    text.substr(begin, end - begin));
    ids.insert(line["id"].get<std::string>());
  }
  if (begin < text.size()) write_file_atomically(file, text.substr(0, begin));
  return ids;
}

Asked asked_of(const data::Dataset& dataset, std::int64_t index, const data::ImageFinder& finder, std::int64_t seed) {
  const data::Sample sample = dataset.get(index);
  Asked asked;
  asked.id = sample.id;
  asked.question = sample.prompt();
  asked.stream = {hash_key("generate"), static_cast<std::uint64_t>(seed), hash_key(sample.id)};
  const std::string embedded = dataset.embedded_picture(index);
  asked.names.push_back(sample.image);
  asked.files.push_back(embedded.empty() ? read_file(finder.require(sample)) : embedded);
  for (const std::string& image : sample.more_images) {
    const fs::path file = finder.find(image);
    if (file.empty()) throw_failure("sample {}: there is no picture {}", sample.id, image);
    asked.names.push_back(image);
    asked.files.push_back(read_file(file));
  }
  return asked;
}

int ask_many(const GenerateOptions& options) {
  const auto dataset = data::open_data(options.data);
  const data::ImageFinder finder(options.images);
  std::set<std::string> known;
  if (fs::exists(options.out)) {
    if (!options.resume) throw_failure("{} is there already; --resume goes on with it", options.out);
    known = answered_ids(options.out);
  }
  if (!options.overlay.empty()) fs::create_directories(options.overlay);
  const InterruptGuard guard;
  Generator generator(options);
  AppendFile out(options.out);
  struct Begun {
    Asked asked;
    generation::BuiltPrompt built;
    std::shared_ptr<Answers> answers;
  };
  std::map<std::int64_t, Begun> begun;
  Progress progress("generate", dataset->size());
  const auto finish_first = [&] {
    const auto first = begun.begin();
    Begun& item = first->second;
    const std::vector<generation::Completion>& completions = item.answers->wait();
    std::string lines;
    for (std::size_t g = 0; g < completions.size(); ++g) {
      Json line = {{"id", item.asked.id}};
      if (completions.size() > 1) line["completion"] = g;
      line["question"] = item.asked.question;
      line["response"] = completions[g].text;
      line["num_tokens"] = completions[g].ids.size();
      Json answer = generator.answer_json(completions[g], item.built);
      // Of the response's own boxes, as `score` reads it; the boxes beside it say theirs.
      answer["boxes_frame"] = answer["frame"];
      answer["frame"] = item.built.frame().name();
      answer.erase("text_frame");
      line.update(answer);
      lines += line_of(line) + "\n";
    }
    out.write(lines);
    if (!options.overlay.empty()) {
      std::string name = item.asked.id;
      std::replace_if(
          name.begin(), name.end(), [](char c) { return c == '/' || c == '\0'; }, '_');
      generator.write_overlay(completions.front(), item.built, item.asked.files.front(),
                              fs::path(options.overlay) / (name + ".png"));
    }
    begun.erase(first);
  };
  for (std::int64_t i = 0; i < dataset->size() && !interrupt_requested(); ++i) {
    Asked asked = asked_of(*dataset, i, finder, options.seed);
    if (known.contains(asked.id)) continue;
    generation::BuiltPrompt built = generator.build(asked);
    auto answers = generator.start(built, asked);
    if (options.overlay.empty()) asked.files.clear();
    begun.emplace(i, Begun{std::move(asked), std::move(built), std::move(answers)});
    // Enough that the engine always has a next one, in the order of the set.
    while (!begun.empty() && (begun.begin()->second.answers->done() ||
                              std::ssize(begun) * options.num_completions > 2 * options.engine.max_rows))
      finish_first();
    progress.update(i + 1 - std::ssize(begun), "");
  }
  while (!begun.empty()) {
    finish_first();
    progress.update(dataset->size() - std::ssize(begun), "");
  }
  progress.finish();
  if (interrupt_requested()) throw_failure("stopped; the answers so far are in {}: --resume goes on", options.out);
  return 0;
}

}  // namespace

int run_generate(const Arguments& arguments) {
  GenerateOptions options;
  if (!parse_options("generate", "ask a model about a picture, or a data set's questions", arguments, options))
    return 0;
  require_setting("generate", "model", options.model, "DIR");
  options.check();
  return options.data.path.empty() ? ask_one(options) : ask_many(options);
}

}  // namespace thinkvg::tools
