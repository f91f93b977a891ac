#pragma once

// Shape letters: V vocabulary.

#include <cstdint>
#include <span>
#include <vector>

namespace thinkvg::nn {

// Passes over one row of logits [V] on the CPU; -inf is a token that cannot be drawn. Thread-safe.

// The largest logit; -inf for a row without tokens.
float largest_logit(std::span<const float> row);

// Unnormalised probabilities exp((x - largest) * inverse_temperature) of a row, summed by blocks: what drawing by the
// inverse of the cumulative distribution needs. A draw reads the row twice and sorts nothing.
class RowMass {
 public:
  RowMass(std::span<const float> row, float largest, float inverse_temperature);
  double total() const { return total_; }
  // The first id up to which, in the order of ids, more than `target` of the mass lies; `target` in [0, total()). An id
  // that has mass even where rounding leaves none.
  std::int64_t find(double target) const;

 private:
  std::span<const float> row_;
  float largest_;
  float inverse_temperature_;
  std::vector<float> blocks_;
  double total_ = 0;
};

// log softmax(row / temperature)[id], to the bit what token_stats gives.
float row_logprob(std::span<const float> row, std::int64_t id, double temperature);

}  // namespace thinkvg::nn
