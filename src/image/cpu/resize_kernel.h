#pragma once

#include <cstdint>
#include <vector>

namespace thinkvg::image::cpu {

// The weights of one axis: output i is sum_t weights[i * stride + t] * input[first[i] + t], rounded and shifted right
// by `precision`, clamped to 8 bits. `stride` is a multiple of 16; weights beyond taps[i] are 0.
struct AxisWeights {
  std::int64_t stride = 0;
  int precision = 0;
  std::vector<std::int64_t> first, taps;
  std::vector<std::int16_t> weights;
};

// A plane of 8-bit values, rows without gaps.
struct Plane {
  const std::uint8_t* values;
  std::int64_t width, height;
};

// Each writes height x outputs (or outputs x width) values to `out`.
void resize_width(const Plane& in, const AxisWeights& axis, std::uint8_t* out);
void resize_height(const Plane& in, const AxisWeights& axis, std::uint8_t* out);

}  // namespace thinkvg::image::cpu
