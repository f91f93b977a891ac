#pragma once

// Shape letters: B completions, G completions of one prompt, K rewards.
//
// Definitions as published in TRL's GRPO trainer.

#include <cstdint>
#include <string_view>
#include <vector>

namespace thinkvg::rl {

enum class AdvantageScaling { group, batch, none };
AdvantageScaling parse_advantage_scaling(std::string_view name);  // throws std::invalid_argument that lists the names

struct Advantages {
  std::vector<double> values;     // [B]
  std::vector<bool> zero_signal;  // [groups]: all rewards of the group are equal
};

// A_i = (R_i - mean of its group) / (s + 1e-4); s: sample standard deviation of the group, or of the batch, or no
// division. A group whose rewards are all equal gets exactly 0. rewards [B], completions of a group side by side; NaN
// stands for a completion that no reward could judge: it counts in no mean or deviation and gets 0.
// Throws std::invalid_argument unless B is a multiple of group_size > 0.
Advantages group_advantages(const std::vector<double>& rewards, std::int64_t group_size, AdvantageScaling scaling);

// GDPO (arXiv 2601.05242; TRL's normalize_then_sum): z_ik = (r_ik - mean of group) / (s of group + 1e-4) for each
// reward, S_i = sum_k w_k z_ik, A_i = (S_i - mean of batch) / (s of batch + 1e-4). rewards [B][K], NaN: not applicable;
// weights [K]. zero_signal: every reward of the group is constant.
Advantages decoupled_advantages(const std::vector<std::vector<double>>& rewards, const std::vector<double>& weights,
                                std::int64_t group_size);

}  // namespace thinkvg::rl
