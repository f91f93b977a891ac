// Against whole updates that tests/parity/write_grpo_update.py stored with TRL's trainer.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <array>
#include <limits>

#include "rl/update_batch.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"
#include "thinkvg/models/qwen2_5_vl.h"
#include "thinkvg/models/safetensors.h"
#include "thinkvg/rl/advantage.h"
#include "thinkvg/rl/policy_loss.h"

namespace thinkvg::rl {
namespace {

constexpr double kTolerance = 1e-4;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::filesystem::path data_folder() { return THINKVG_TEST_DATA; }

struct Reference {
  Json document = read_json_file(data_folder() / "grpo_update" / "cases.json");
  std::map<std::string, at::Tensor> state =
      models::read_safetensors(data_folder() / "grpo_update" / "state.safetensors");
};

const Reference& reference() {
  static const Reference kReference;
  return kReference;
}

// Two questions with four completions each, as in the stored cases.
class Update {
 public:
  explicit Update(const Json& options) : options_(options), model_(load()), behind_(load()) {
    const Json& document = reference().document;
    for (std::size_t i = 0; i < document["prompts"].size(); ++i) add_group(i);
    const at::NoGradGuard no_grad;
    for (const at::Tensor& parameter : behind_->parameters()) parameter.mul_(document["reference_scale"].get<double>());
    head_.temperature = document["temperature"].get<double>();
  }

  std::vector<double> set_advantages() {
    const Json& document = reference().document;
    const auto weights = document["weights"].get<std::vector<double>>();
    std::vector<double> totals;
    std::vector<std::vector<double>> values;
    for (const Json& group : document["rewards"]) {
      for (std::size_t g = 0; g < group[0].size(); ++g) {
        totals.push_back(0);
        values.emplace_back();
        for (std::size_t k = 0; k < weights.size(); ++k) {
          const Json& reward = group[k][g];
          values.back().push_back(reward.is_null() ? kNan : reward.get<double>());
          if (!reward.is_null()) totals.back() += weights[k] * reward.get<double>();
        }
      }
    }
    constexpr std::int64_t kGroupSize = 4;
    const Advantages advantages =
        text("multi_objective_aggregation") == "normalize_then_sum"
            ? decoupled_advantages(values, weights, kGroupSize)
            : group_advantages(totals, kGroupSize, parse_advantage_scaling(text("scale_rewards")));
    std::size_t next = 0;
    for (Group& group : groups_)
      for (ScoredCompletion& scored : group.completions) scored.advantage = advantages.values[next++];
    return advantages.values;
  }

  // The loss of the step; its gradient is the parameters'.
  double backward() {
    std::vector<Group*> groups;
    std::vector<at::Tensor> features, features_behind;
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      groups.push_back(&groups_[i]);
      features.push_back(model_->encode_images(patches_[i]));
      const at::NoGradGuard no_grad;
      features_behind.push_back(behind_->encode_images(patches_[i]));
    }
    const UpdateBatch batch = make_update_batch(groups, features, at::kCPU, /*all=*/false);
    const nn::TokenStats policy = completion_stats(*model_, batch, head_);
    PolicyLossInput input;
    input.log_probs = policy.logprob;
    input.entropy = policy.entropy;
    if (options_["off_policy"].get<bool>()) input.old_log_probs = joined(batch, &ScoredCompletion::old_log_probs);
    const PolicyLossOptions loss_options = policy_options();
    if (loss_options.beta != 0) {
      const at::NoGradGuard no_grad;
      const UpdateBatch same = make_update_batch(groups, features_behind, at::kCPU, /*all=*/false);
      input.ref_log_probs = completion_stats(*behind_, same, head_).logprob;
    }
    if (const double share = options_["top_entropy_quantile"].get<double>(); share < 1) {
      input.token_mask = top_entropy_tokens(policy.entropy.detach(), share);
      input.total_masked_tokens = input.token_mask.sum().item<std::int64_t>();
    }
    input.advantages = batch.advantages;
    input.sequence = batch.sequence;
    input.lengths = batch.lengths;
    input.total_completions = 8;
    input.total_tokens = batch.targets.size(0);
    const PolicyLoss loss = policy_loss(input, loss_options);
    loss.loss.backward();
    return loss.loss.item<double>();
  }

  const models::VisionLanguageModel& model() const { return *model_; }

 private:
  static std::shared_ptr<models::VisionLanguageModel> load() { return models::load(data_folder() / "qwen2_5_vl/tied"); }

  std::string text(const char* name) const { return options_[name].get<std::string>(); }

  void add_group(std::size_t i) {
    const auto& [document, state] = reference();
    const at::Tensor grid = state.at("grid_" + std::to_string(i));
    patches_.push_back({state.at("pixel_values_" + std::to_string(i)).clone(),
                        {{grid[0].item<std::int64_t>(), grid[1].item<std::int64_t>(), grid[2].item<std::int64_t>()}}});
    generation::Question question;
    question.prompt.ids = document["prompts"][i].get<std::vector<std::int64_t>>();
    for (std::size_t place = 0; place < question.prompt.ids.size(); ++place)
      if (question.prompt.ids[place] == model_->special_tokens().image)
        question.prompt.image_rows.push_back(static_cast<std::int64_t>(place));
    question.grids = patches_.back().grids;
    question.positions = model_->token_positions(question.prompt.ids, question.grids);
    Group group;
    group.question = std::make_shared<const generation::Question>(std::move(question));
    const Json& completions = document["completions"][i];
    for (const Json& ids : completions) {
      generation::Completion completion;
      completion.ids = ids.get<std::vector<std::int64_t>>();
      completion.logprobs.resize(completion.ids.size(), 0.0F);
      completion.finish =
          completion.ids.back() == 2 ? generation::FinishReason::stop : generation::FinishReason::length;
      group.drawn.push_back(std::move(completion));
    }
    for (std::size_t g = 0; g < group.drawn.size(); ++g) {
      ScoredCompletion scored;
      scored.completion = &group.drawn[g];
      scored.in_loss = !(options_["mask_truncated_completions"].get<bool>() &&
                         scored.completion->finish == generation::FinishReason::length);
      if (options_.contains("old_log_probs"))
        scored.old_log_probs =
            at::tensor(options_["old_log_probs"][4 * i + g].get<std::vector<double>>(), at::kDouble).to(at::kFloat);
      group.completions.push_back(std::move(scored));
    }
    groups_.push_back(std::move(group));
  }

  PolicyLossOptions policy_options() const {
    PolicyLossOptions options;
    options.type = parse_loss_type(text("loss_type"));
    options.ratio_level = parse_ratio_level(text("importance_sampling_level"));
    options.epsilon_high = options_["epsilon_high"].get<double>();
    options.delta = options_.value("delta", 0.0);
    options.beta = options_["beta"].get<double>();
    options.bias_corrected_kl = options_["use_bias_correction_kl"].get<bool>();
    options.entropy_coef = options_["entropy_coef"].get<double>();
    options.max_completion_length = reference().document["max_completion_length"].get<std::int64_t>();
    return options;
  }

  Json options_;
  std::shared_ptr<models::VisionLanguageModel> model_, behind_;
  nn::HeadOptions head_;
  std::vector<models::PixelPatches> patches_;
  std::vector<Group> groups_;
};

// Norm and two projections, as the script makes them.
std::array<double, 3> summary_of(const at::Tensor& gradient) {
  const at::Tensor flat = gradient.to(at::kDouble).flatten();
  const at::Tensor index = at::arange(1, flat.size(0) + 1, flat.options());
  return {flat.norm().item<double>(), flat.dot(index.cos()).item<double>(),
          flat.dot((1.7 * index).sin()).item<double>()};
}

class GrpoUpdateParity : public testing::TestWithParam<std::size_t> {};

TEST_P(GrpoUpdateParity, LossAndEveryGradientAreTrls) {
  const Json& expected = reference().document["cases"][GetParam()];
  SCOPED_TRACE(expected["name"].get<std::string>());
  Update update(expected);
  const std::vector<double> advantages = update.set_advantages();
  for (std::size_t i = 0; i < advantages.size(); ++i)
    EXPECT_NEAR(advantages[i], expected["advantages"][i].get<double>(), 1e-5) << "completion " << i;
  EXPECT_NEAR(update.backward(), expected["loss"].get<double>(), kTolerance);
  std::size_t num_compared = 0;
  for (const auto& item : update.model().named_parameters()) {
    const at::Tensor gradient = item.value().grad();
    if (!expected["gradients"].contains(item.key())) {
      EXPECT_FALSE(gradient.defined() && gradient.abs().max().item<double>() > 0) << item.key() << " has no reference";
      continue;
    }
    ++num_compared;
    ASSERT_TRUE(gradient.defined()) << item.key();
    const auto stored = expected["gradients"][item.key()].get<std::array<double, 3>>();
    const std::array<double, 3> got = summary_of(gradient);
    // The projections' vectors have entries of up to 1, so that an error of the norm's size may show in them.
    for (std::size_t k = 0; k < 3; ++k)
      EXPECT_NEAR(got[k], stored[k], kTolerance * stored[0] * (k == 0 ? 1 : 3) + 1e-7)
          << item.key() << ", number " << k;
    if (GetParam() > 0) continue;
    const at::Tensor& whole = reference().state.at("grad:" + item.key());
    EXPECT_LE((gradient - whole).norm().item<double>(), kTolerance * stored[0] + 1e-7) << item.key();
  }
  EXPECT_EQ(num_compared, expected["gradients"].size());
}

INSTANTIATE_TEST_SUITE_P(, GrpoUpdateParity, testing::Range(std::size_t{0}, std::size_t{14}));

}  // namespace
}  // namespace thinkvg::rl
