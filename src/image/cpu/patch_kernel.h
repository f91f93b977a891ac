#pragma once

#include <cstdint>

namespace thinkvg::image::cpu {

struct Normalization {
  float mean, deviation;  // of values 0..255
};

// (value - mean) / deviation of `count` values, each step rounded as IEEE floats are.
void normalize(const std::uint8_t* values, std::int64_t count, const Normalization& by, float* out);

}  // namespace thinkvg::image::cpu
