#include "thinkvg/train/new_model.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <numeric>
#include <sstream>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/log.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/data/images.h"
#include "thinkvg/grounding/response.h"
#include "thinkvg/models/bundle.h"
#include "thinkvg/models/image_encoder.h"
#include "thinkvg/nn/workers.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/run_folder.h"

namespace thinkvg::train {
namespace fs = std::filesystem;
namespace {

void check(const NewModelOptions& o) {
  const auto divides = [](std::int64_t part, std::int64_t whole) { return part > 0 && whole > 0 && whole % part == 0; };
  if (!divides(o.language.num_heads, o.language.hidden_size))
    throw_invalid("language.hidden_size {} must be a multiple of language.num_heads {}", o.language.hidden_size,
                  o.language.num_heads);
  if (!divides(o.language.num_kv_heads, o.language.num_heads))
    throw_invalid("language.num_heads {} must be a multiple of language.num_kv_heads {}", o.language.num_heads,
                  o.language.num_kv_heads);
  std::int64_t sum = 0;
  for (const std::int64_t part : o.language.mrope_section) sum += part;
  const std::int64_t half = o.language.hidden_size / o.language.num_heads / 2;
  if (o.language.mrope_section.size() != 3 || sum != half)
    throw_invalid("language.mrope_section must be three numbers that add up to half a head's width, {}", half);
  if (!divides(o.vision.num_heads, o.vision.hidden_size) || o.vision.hidden_size / o.vision.num_heads % 4 != 0)
    throw_invalid("vision.hidden_size {} over vision.num_heads {} must give a head width that is a multiple of 4",
                  o.vision.hidden_size, o.vision.num_heads);
  if (!divides(2 * o.vision.patch_size, o.image_size))
    throw_invalid("image_size {} must be a multiple of two patches, {}", o.image_size, 2 * o.vision.patch_size);
  if (!divides(2 * o.vision.patch_size, o.vision.window_size))
    throw_invalid("vision.window_size {} must be a multiple of two patches, {}", o.vision.window_size,
                  2 * o.vision.patch_size);
  for (const std::int64_t block : o.vision.full_attention_blocks)
    if (block < 0 || block >= o.vision.depth)
      throw_invalid("vision.full_attention_blocks names block {}, but there are {}", block, o.vision.depth);
}

Json model_config(const NewModelOptions& o, const text::Tokenizer& tokenizer) {
  const auto id = [&](const char* piece) { return tokenizer.token_id(piece); };
  const Json text = {
      {"model_type", "qwen2_5_vl_text"},
      {"vocab_size", tokenizer.vocab_size()},
      {"hidden_size", o.language.hidden_size},
      {"intermediate_size", o.language.intermediate_size},
      {"num_hidden_layers", o.language.num_layers},
      {"num_attention_heads", o.language.num_heads},
      {"num_key_value_heads", o.language.num_kv_heads},
      {"hidden_act", "silu"},
      {"max_position_embeddings", 4096},
      {"rms_norm_eps", 1e-6},
      {"tie_word_embeddings", o.language.tie_embeddings},
      {"use_sliding_window", false},
      {"rope_parameters",
       {{"rope_type", "default"}, {"rope_theta", o.language.rope_theta}, {"mrope_section", o.language.mrope_section}}},
      {"bos_token_id", nullptr},
      {"eos_token_id", id("<|im_end|>")},
      {"pad_token_id", id("<|endoftext|>")},
      {"dtype", "float32"}};
  const Json vision = {{"model_type", "qwen2_5_vl"},
                       {"depth", o.vision.depth},
                       {"hidden_size", o.vision.hidden_size},
                       {"out_hidden_size", o.language.hidden_size},
                       {"intermediate_size", o.vision.intermediate_size},
                       {"num_heads", o.vision.num_heads},
                       {"in_channels", 3},
                       {"hidden_act", "silu"},
                       {"patch_size", o.vision.patch_size},
                       {"spatial_merge_size", 2},
                       {"temporal_patch_size", 2},
                       {"window_size", o.vision.window_size},
                       {"fullatt_block_indexes", o.vision.full_attention_blocks},
                       {"tokens_per_second", 2}};
  return {{"architectures", {"Qwen2_5_VLForConditionalGeneration"}},
          {"model_type", "qwen2_5_vl"},
          {"tie_word_embeddings", o.language.tie_embeddings},
          {"image_token_id", id("<|image_pad|>")},
          {"video_token_id", id("<|video_pad|>")},
          {"vision_start_token_id", id("<|vision_start|>")},
          {"vision_end_token_id", id("<|vision_end|>")},
          {"eos_token_id", id("<|im_end|>")},
          {"pad_token_id", id("<|endoftext|>")},
          {"dtype", "float32"},
          {"text_config", text},
          {"vision_config", vision}};
}

// Boxes of one annotated picture, by class.
struct AnnotatedPicture {
  fs::path file;
  std::vector<std::pair<std::int64_t, grounding::Box>> boxes;  // class, original pixels
};

struct Annotations {
  std::vector<std::string> classes;
  std::vector<AnnotatedPicture> pictures;
};

Annotations read_annotations(const fs::path& file, const fs::path& images) {
  Annotations annotations;
  std::map<std::string, std::int64_t> class_of;
  const data::ImageFinder finder(images);
  std::stringstream stream(read_file(file));
  std::int64_t row = 0;
  for (std::string line; std::getline(stream, line); ++row) {
    try {
      const Json json = Json::parse(line);
      if (json.at("split").get<std::string>() != "train") continue;
      AnnotatedPicture picture;
      data::Sample sample;
      sample.id = std::to_string(row);
      sample.image = json.at("image_path").get<std::string>();
      picture.file = finder.require(sample);
      for (const Json& item : json.at("items")) {
        const auto box = item.at("box").get<std::vector<double>>();
        if (box.size() != 4)
          throw_failure("{}, row {}: a box must hold 4 numbers, but holds {}", file.string(), row, box.size());
        const std::string name = item.at("kind").get<std::string>() + "/" + item.at("name").get<std::string>();
        const auto [found, is_new] = class_of.emplace(name, static_cast<std::int64_t>(class_of.size()));
        if (is_new) annotations.classes.push_back(name);
        picture.boxes.emplace_back(found->second, grounding::Box{box[0], box[1], box[2], box[3], {}});
      }
      annotations.pictures.push_back(std::move(picture));
    } catch (const Json::exception& error) {
      throw_failure("{}, row {}: {}", file.string(), row, error.what());
    }
  }
  if (annotations.pictures.empty()) throw_failure("{} holds no picture of the train split", file.string());
  return annotations;
}

// Share of every token's cell that each class covers: [tokens, classes], tokens in the merged grid's row order.
at::Tensor coverage(const AnnotatedPicture& picture, const models::LoadedPicture& loaded, std::int64_t merge_size,
                    std::int64_t num_classes) {
  const models::ImageGrid& grid = loaded.processed.patches.grids.front();
  const std::int64_t rows = grid.h / merge_size, columns = grid.w / merge_size;
  at::Tensor target = at::zeros({rows * columns, num_classes});
  auto cells = target.accessor<float, 2>();
  const grounding::BoxFrame& frame = loaded.processed.frame;
  const double cell_w = static_cast<double>(frame.width()) / static_cast<double>(columns);
  const double cell_h = static_cast<double>(frame.height()) / static_cast<double>(rows);
  for (const auto& [index, original] : picture.boxes) {
    const grounding::Box box = loaded.geometry().convert(original, frame);
    for (std::int64_t r = 0; r < rows; ++r) {
      const double overlap_y =
          std::min(box.y2, cell_h * static_cast<double>(r + 1)) - std::max(box.y1, cell_h * static_cast<double>(r));
      if (overlap_y <= 0) continue;
      for (std::int64_t c = 0; c < columns; ++c) {
        const double overlap_x =
            std::min(box.x2, cell_w * static_cast<double>(c + 1)) - std::max(box.x1, cell_w * static_cast<double>(c));
        if (overlap_x <= 0) continue;
        float& share = cells[r * columns + c][index];
        share = std::min(1.0f, share + static_cast<float>(overlap_x * overlap_y / (cell_w * cell_h)));
      }
    }
  }
  return target;
}

}  // namespace

void make_new_model(const NewModelOptions& options) {
  check(options);
  const auto dataset = data::open_dataset(options.data);
  std::vector<std::string> texts;
  for (std::int64_t i = 0; i < std::min<std::int64_t>(dataset->size(), 20000); ++i) {
    const data::Sample sample = dataset->get(i);
    texts.push_back(sample.prompt());
    texts.push_back("<think>" + sample.think + "</think>" + grounding::format_response(sample.answer, sample.regions));
  }
  if (texts.empty()) throw_failure("{} holds no question to train a tokenizer on", options.data);
  write_folder_atomically(options.out, [&](const fs::path& folder) {
    text::train_tokenizer(texts, {options.vocab_size}, folder);
    models::ModelBundle bundle;
    bundle.tokenizer_files = models::read_tokenizer_files(folder);
    bundle.tokenizer = text::load_tokenizer(folder);
    models::ProcessorOptions processor;
    processor.patch_size = options.vision.patch_size;
    // Half an image token of room on both sides, so that every square lands on image_size whatever it is rounded from.
    const std::int64_t room = options.vision.patch_size;
    processor.min_pixels = (options.image_size - room) * (options.image_size - room);
    processor.max_pixels = (options.image_size + room) * (options.image_size + room);
    processor.pad_to_square = true;
    bundle.processor = std::make_shared<const models::ImageProcessor>(processor);
    bundle.model = models::create(model_config(options, *bundle.tokenizer), static_cast<std::uint64_t>(options.seed));
    models::save_bundle(bundle, folder);
    std::int64_t num_parameters = 0;
    for (const at::Tensor& parameter : bundle.model->parameters()) num_parameters += parameter.numel();
    spdlog::info(
        "init: {} parameters, {} pieces, {} image tokens a picture, written to {}", format_count(num_parameters),
        bundle.tokenizer->vocab_size(),
        (options.image_size / options.vision.patch_size / 2) * (options.image_size / options.vision.patch_size / 2),
        options.out);
  });
}

void run_warmup(const WarmupOptions& options) {
  if (options.num_threads > 0) at::set_num_threads(static_cast<int>(options.num_threads));
  if (options.steps < 1 || options.batch_size < 1) throw_invalid("steps and batch_size must be at least 1");
  const Annotations annotations = read_annotations(options.annotations, options.images);
  const auto num_classes = static_cast<std::int64_t>(annotations.classes.size());
  RunFolder run(options.out, false, {});
  run.open_logs(0);
  const models::ModelBundle bundle = models::load_bundle(models::resolve_model_folder(options.model));
  models::VisionLanguageModel& model = *bundle.model;
  run.write_config(settings_to_json(options));
  run.write_manifest(make_manifest("warmup", options.seed, {{"annotations", options.annotations}}));

  models::NamedTensors parameters;
  for (const auto& item : model.named_parameters())
    if (model.part_of(item.key()) != models::ModelPart::language) parameters.emplace_back(item.key(), item.value());
  at::Tensor weight = at::zeros({num_classes, model.hidden_size()}).set_requires_grad(true);
  at::Tensor bias = at::full({num_classes}, -3.0).set_requires_grad(true);
  parameters.emplace_back("head.weight", weight);
  parameters.emplace_back("head.bias", bias);
  OptimizerOptions optimizer_options;
  optimizer_options.lr = options.lr;
  optimizer_options.warmup_ratio = 0.05;
  optimizer_options.min_lr_ratio = 0.02;
  dist::ProcessGroup alone;
  DistributedAdamW optimizer(std::vector<ParameterGroup>{{parameters}}, optimizer_options, alone);
  models::PictureCache pictures(bundle.processor, {std::int64_t{4} << 30, at::get_num_threads(), {}});
  spdlog::info(
      "warmup: {} pictures, {} classes, {} steps of {}; the tower learns from region labels, which stands in "
      "for a pretrained tower",
      format_count(static_cast<std::int64_t>(annotations.pictures.size())), num_classes, format_count(options.steps),
      options.batch_size);

  const auto indices_of = [&](std::int64_t step) {
    return batch_indices(static_cast<std::int64_t>(annotations.pictures.size()), options.batch_size, step,
                         static_cast<std::uint64_t>(options.seed));
  };
  const auto files_of = [&](std::int64_t step) {
    std::vector<fs::path> files;
    for (const std::int64_t index : indices_of(step))
      files.push_back(annotations.pictures[static_cast<std::size_t>(index)].file);
    return files;
  };
  Progress progress("warmup", options.steps);
  for (std::int64_t step = 0; step < options.steps; ++step) {
    const std::vector<std::int64_t> indices = indices_of(step);
    const auto loaded = pictures.get(files_of(step));
    // The next batch is decoded while this one is learned.
    if (step + 1 < options.steps) pictures.prefetch(files_of(step + 1));
    std::int64_t num_cells = 0;
    std::vector<at::Tensor> targets;
    for (std::size_t i = 0; i < loaded.size(); ++i) {
      targets.push_back(coverage(annotations.pictures[static_cast<std::size_t>(indices[i])], *loaded[i],
                                 bundle.processor->options().merge_size, num_classes));
      num_cells += targets.back().numel();
    }
    // A share of the pictures for each worker.
    const auto count = std::ssize(loaded);
    const std::int64_t num_shares = std::min(nn::num_workers(), count);
    std::vector<double> losses(static_cast<std::size_t>(num_shares));
    const auto loss_of = [&](std::int64_t share) {
      const std::int64_t begin = share * count / num_shares, end = (share + 1) * count / num_shares;
      models::PixelPatches patches;
      std::vector<at::Tensor> values;
      for (std::int64_t i = begin; i < end; ++i) {
        const models::PixelPatches& picture = loaded[static_cast<std::size_t>(i)]->processed.patches;
        values.push_back(picture.values);
        patches.grids.push_back(picture.grids.front());
      }
      patches.values = at::cat(values, 0);
      const at::Tensor scores = at::linear(model.encode_images(patches), weight, bias);
      const at::Tensor target = at::cat(
          at::TensorList(targets).slice(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
      const at::Tensor loss = at::binary_cross_entropy_with_logits(scores, target, {}, {}, at::Reduction::Sum) /
                              static_cast<double>(num_cells);
      losses[static_cast<std::size_t>(share)] = loss.item<double>();
      return loss;
    };
    const std::vector<at::Tensor> gradients = optimizer.accumulate(num_shares, loss_of);
    const double lr = learning_rate(optimizer_options, step, options.steps);
    const double grad_norm = optimizer.step(gradients, lr);
    const double value = std::accumulate(losses.begin(), losses.end(), 0.0);
    run.log({{"step", step + 1}, {"loss", value}, {"lr", lr}, {"grad_norm", grad_norm}});
    progress.update(step + 1, fmt::format("loss {:.4f}", value));
  }
  progress.finish();
  run.save_checkpoint(models::bundle_content(bundle), optimizer, {options.steps, Json::object()}, alone);
}

}  // namespace thinkvg::train
