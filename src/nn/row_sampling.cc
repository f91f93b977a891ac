#include "thinkvg/nn/row_sampling.h"

#include <algorithm>
#include <array>

#include "nn/cpu/row_mass_kernel.h"
#include "nn/cpu/token_stats_kernel.h"

namespace thinkvg::nn {

float largest_logit(std::span<const float> row) { return cpu::largest(row.data(), std::ssize(row)); }

RowMass::RowMass(std::span<const float> row, float largest, float inverse_temperature)
    : row_(row), largest_(largest), inverse_temperature_(inverse_temperature) {
  for (std::int64_t begin = 0; begin < std::ssize(row); begin += cpu::kMassBlock) {
    const std::int64_t count = std::min(cpu::kMassBlock, std::ssize(row) - begin);
    blocks_.push_back(cpu::exponentials(row.data() + begin, count, largest, inverse_temperature, nullptr));
    total_ += blocks_.back();
  }
}

std::int64_t RowMass::find(double target) const {
  double before = 0;
  std::int64_t last = -1;
  for (std::size_t block = 0; block < blocks_.size(); ++block) {
    const bool is_last = block + 1 == blocks_.size();
    if (blocks_[block] <= 0 || (before + blocks_[block] <= target && !is_last)) {
      before += blocks_[block];
      continue;
    }
    const std::int64_t begin = static_cast<std::int64_t>(block) * cpu::kMassBlock;
    const std::int64_t count = std::min(cpu::kMassBlock, std::ssize(row_) - begin);
    std::array<float, cpu::kMassBlock> mass;
    cpu::exponentials(row_.data() + begin, count, largest_, inverse_temperature_, mass.data());
    double within = before;
    for (std::int64_t i = 0; i < count; ++i) {
      if (mass[static_cast<std::size_t>(i)] <= 0) continue;
      last = begin + i;
      within += mass[static_cast<std::size_t>(i)];
      if (within > target) return last;
    }
    before += blocks_[block];
  }
  if (last >= 0) return last;
  for (std::int64_t id = std::ssize(row_) - 1; id >= 0; --id)
    if (row_[static_cast<std::size_t>(id)] == largest_) return id;
  return std::max<std::int64_t>(0, std::ssize(row_) - 1);
}

float row_logprob(std::span<const float> row, std::int64_t id, double temperature) {
  float logprob = 0, logsumexp = 0, entropy = 0;
  cpu::token_stats({row.data(), false, std::ssize(row), std::ssize(row), &id, static_cast<float>(1.0 / temperature)}, 0,
                   1, {&logprob, &logsumexp, &entropy});
  return logprob;
}

}  // namespace thinkvg::nn
