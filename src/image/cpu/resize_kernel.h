#pragma once

#include <cstdint>
#include <vector>

namespace thinkvg::image::cpu {

// The weights of one axis: output i is sum_t weights[i * stride + t] * input[first[i] + t], rounded and shifted right
// by `precision`, clamped to 8 bits. `stride` is a multiple of 16; weights beyond taps[i] are 0; `first` never falls.
struct AxisWeights {
  std::int64_t stride = 0;
  int precision = 0;
  std::vector<std::int64_t> first, taps;
  std::vector<std::int16_t> weights;

  std::int64_t outputs() const { return static_cast<std::int64_t>(first.size()); }
};

// Rows of 8-bit values, `stride` bytes from one to the next; 0 repeats the first.
struct Rows {
  const std::uint8_t* values;
  std::int64_t stride, count;
};

// Resizes the width of rows. Keeps memory to work in: one object a thread.
class WidthResizer {
 public:
  WidthResizer(AxisWeights axis, std::int64_t width);
  // Writes in.count rows of axis.outputs() values each, without gaps.
  void run(const Rows& in, std::uint8_t* out);

 private:
  AxisWeights axis_;
  std::int64_t width_;
  std::int64_t num_inside_ = 0;  // outputs whose wide reads stay inside the row
  // Sixteen rows at once: their values two columns together, and the weights as they meet those.
  std::int64_t pairs_ = 0;  // of columns, that an output is made of
  std::vector<std::int32_t> pair_weights_;
  std::vector<std::uint16_t> columns_;
};

// Output `output` of the axis for each of `width` columns; `from`: its first input row, the others follow without gaps.
struct WeighedRows {
  const std::uint8_t* from;
  std::int64_t width;
  std::int64_t output;
};
void resize_height(const WeighedRows& rows, const AxisWeights& axis, std::uint8_t* out);

}  // namespace thinkvg::image::cpu
