#include "nn/cpu/row_mass_kernel.h"

#include <limits>

#include "nn/cpu/vectors.h"

namespace thinkvg::nn::cpu {
namespace {

[[gnu::always_inline]] inline float largest_of(const float* row, std::int64_t count) {
  Floats most = splat(-std::numeric_limits<float>::infinity());
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) most = larger(load(row + i), most);
  float result = max_of(most);
  for (; i < count; ++i) result = row[i] > result ? row[i] : result;
  return result;
}

[[gnu::always_inline]] inline float exponentials_of(const float* row, std::int64_t count, float largest, float scale,
                                                    float* out) {
  Floats sum = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats e = exponential((load(row + i) - largest) * scale);
    if (out != nullptr) store(out + i, e);
    sum += e;
  }
  if (i < count) {
    Floats rest = splat(-std::numeric_limits<float>::infinity());
    for (std::int64_t j = 0; j < count - i; ++j) rest[j] = row[i + j];
    const Floats e = exponential((rest - largest) * scale);
    if (out != nullptr) store_part(out + i, e, count - i);
    sum += e;
  }
  return sum_of(sum);
}

struct Kernels {
  float (*largest)(const float*, std::int64_t);
  float (*exponentials)(const float*, std::int64_t, float, float, float*);
};

struct Base {
  static float largest(const float* row, std::int64_t count) { return largest_of(row, count); }
  static float exponentials(const float* row, std::int64_t count, float most, float scale, float* out) {
    return exponentials_of(row, count, most, scale, out);
  }
};
#ifdef __x86_64__
struct Avx2 {
  [[gnu::target("avx2,fma")]] static float largest(const float* row, std::int64_t count) {
    return largest_of(row, count);
  }
  [[gnu::target("avx2,fma")]] static float exponentials(const float* row, std::int64_t count, float most, float scale,
                                                        float* out) {
    return exponentials_of(row, count, most, scale, out);
  }
};
struct Avx512 {
  [[gnu::target("avx512f,avx512vl,fma")]] static float largest(const float* row, std::int64_t count) {
    return largest_of(row, count);
  }
  [[gnu::target("avx512f,avx512vl,fma")]] static float exponentials(const float* row, std::int64_t count, float most,
                                                                    float scale, float* out) {
    return exponentials_of(row, count, most, scale, out);
  }
};
#endif

Kernels choose_kernels() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"))
    return {Avx512::largest, Avx512::exponentials};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {Avx2::largest, Avx2::exponentials};
#endif
  return {Base::largest, Base::exponentials};
}

const Kernels& kernels() {
  static const Kernels kChosen = choose_kernels();
  return kChosen;
}

}  // namespace

float largest(const float* row, std::int64_t count) { return kernels().largest(row, count); }

float exponentials(const float* row, std::int64_t count, float largest, float scale, float* out) {
  return kernels().exponentials(row, count, largest, scale, out);
}

}  // namespace thinkvg::nn::cpu
