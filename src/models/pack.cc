#include "thinkvg/models/pack.h"

namespace thinkvg::models {

std::int64_t PackBuilder::add(const Sequence& sequence) {
  const std::int64_t first = num_tokens();
  ids_.insert(ids_.end(), sequence.ids.begin(), sequence.ids.end());
  positions_.push_back(sequence.positions);
  for (const std::int64_t row : sequence.image_rows) image_rows_.push_back(first + row);
  std::size_t next = 0;
  for (const at::Tensor& features : sequence.image_features) {
    const auto length = static_cast<std::size_t>(features.size(0));
    if (next + length > sequence.image_rows.size()) break;  // embed() says what is wrong
    if (length > 0) layout_.images.push_back({first + sequence.image_rows[next], static_cast<std::int64_t>(length)});
    next += length;
  }
  image_features_.insert(image_features_.end(), sequence.image_features.begin(), sequence.image_features.end());
  layout_.lengths.push_back(static_cast<std::int64_t>(sequence.ids.size()));
  layout_.prefix.push_back(sequence.prefix);
  return first;
}

Pack PackBuilder::build(at::Device device) const {
  Pack pack;
  pack.ids = at::tensor(ids_, at::kLong).to(device);
  pack.positions = at::cat(positions_, 1).to(device);
  if (!image_rows_.empty()) {
    pack.image_rows = at::tensor(image_rows_, at::kLong).to(device);
    pack.image_features = at::cat(image_features_, 0).to(device);
  }
  pack.layout = layout_;
  return pack;
}

at::Tensor text_positions(std::int64_t first, std::int64_t length) {
  return at::arange(first, first + length, at::kLong).unsqueeze(0).expand({3, length});
}

at::Tensor run_pack(VisionLanguageModel& model, const Pack& pack, nn::AttentionContext& attention) {
  return model.decode(model.embed(pack.ids, pack.image_rows, pack.image_features), pack.positions, attention);
}

std::vector<std::int64_t> banned_ids(const SpecialTokens& special) {
  std::vector<std::int64_t> ids;
  for (const std::int64_t id : {special.image, special.vision_start, special.vision_end})
    if (id >= 0) ids.push_back(id);
  return ids;
}

}  // namespace thinkvg::models
