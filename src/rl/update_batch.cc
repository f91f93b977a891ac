#include "rl/update_batch.h"

namespace thinkvg::rl {

UpdateBatch make_update_batch(const std::vector<Group*>& groups, const std::vector<at::Tensor>& features,
                              at::Device device, bool all) {
  models::PackBuilder packer;
  std::vector<std::int64_t> rows, targets, sequence, lengths;
  std::vector<float> rollout;
  std::vector<double> advantages;
  UpdateBatch batch;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const generation::Question& question = *groups[i]->question;
    const std::int64_t prefix = packer.num_sequences();
    const std::int64_t first =
        packer.add({question.prompt.ids, question.positions.positions, question.prompt.image_rows, {features[i]}, -1});
    const std::int64_t last_of_prompt = first + static_cast<std::int64_t>(question.prompt.ids.size()) - 1;
    for (ScoredCompletion& scored : groups[i]->completions) {
      if (!scored.in_loss && !all) continue;
      const std::vector<std::int64_t>& ids = scored.completion->ids;
      const auto length = static_cast<std::int64_t>(ids.size());
      // The last token is only a target: nothing follows it.
      std::int64_t begin = 0;
      if (length > 1)
        begin = packer.add({{ids.begin(), ids.end() - 1},
                            models::text_positions(question.positions.next, length - 1),
                            {},
                            {},
                            prefix});
      for (std::int64_t t = 0; t < length; ++t) {
        rows.push_back(t == 0 ? last_of_prompt : begin + t - 1);
        targets.push_back(ids[static_cast<std::size_t>(t)]);
        rollout.push_back(scored.completion->logprobs[static_cast<std::size_t>(t)]);
        sequence.push_back(static_cast<std::int64_t>(lengths.size()));
      }
      lengths.push_back(length);
      advantages.push_back(scored.advantage);
      batch.completions.push_back(&scored);
    }
  }
  batch.pack = packer.build(device);
  batch.rows = at::tensor(rows, at::kLong).to(device);
  batch.targets = at::tensor(targets, at::kLong).to(device);
  batch.rollout_log_probs = at::tensor(rollout, at::kFloat).to(device);
  batch.sequence = at::tensor(sequence, at::kLong).to(device);
  batch.lengths = at::tensor(lengths, at::kLong).to(device);
  batch.advantages = at::tensor(advantages, at::kDouble).to(device);
  return batch;
}

nn::TokenStats completion_stats(models::VisionLanguageModel& model, const UpdateBatch& batch,
                                const nn::HeadOptions& options) {
  nn::PackedAttention attention(batch.pack.layout);
  const at::Tensor hidden = models::run_pack(model, batch.pack, attention).index_select(0, batch.rows);
  return nn::head_token_stats(hidden, model.output_weight(), batch.targets, options);
}

at::Tensor joined(const UpdateBatch& batch, at::Tensor ScoredCompletion::*numbers) {
  std::vector<at::Tensor> parts;
  for (const ScoredCompletion* scored : batch.completions) parts.push_back(scored->*numbers);
  return at::cat(parts).to(batch.rows.device());
}

void share_out(const UpdateBatch& batch, const at::Tensor& all, at::Tensor ScoredCompletion::*numbers) {
  const at::Tensor plain = all.detach().cpu();
  std::int64_t begin = 0;
  for (ScoredCompletion* scored : batch.completions) {
    const auto length = static_cast<std::int64_t>(scored->completion->ids.size());
    scored->*numbers = plain.narrow(0, begin, length);
    begin += length;
  }
}

}  // namespace thinkvg::rl
