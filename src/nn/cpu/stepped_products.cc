#include "nn/cpu/stepped_products.h"

#include <ATen/ATen.h>

namespace thinkvg::nn {
namespace {

constexpr std::int64_t kStep = 256, kRestStep = 64;

// The rows behind the whole steps, filled up.
at::Tensor rest_of(const at::Tensor& rows) {
  const std::int64_t whole = whole_steps(rows.size(0)), count = rows.size(0) - whole;
  const at::Tensor rest = rows.narrow(0, whole, count);
  const std::int64_t missing = (count + kRestStep - 1) / kRestStep * kRestStep - count;
  return missing == 0 ? rest : at::constant_pad_nd(rest, {0, 0, 0, missing});
}

}  // namespace

std::int64_t whole_steps(std::int64_t num_rows) { return num_rows / kStep * kStep; }

at::Tensor stepped_product(const at::Tensor& rows, const at::Tensor& weight) {
  const at::NoGradGuard no_grad;
  const std::int64_t count = rows.size(0), whole = whole_steps(count);
  at::Tensor output = at::empty({count, weight.size(1)}, rows.options());
  at::Tensor steps = output.narrow(0, 0, whole);
  at::mm_out(steps, rows.narrow(0, 0, whole), weight);
  if (whole < count) output.narrow(0, whole, count - whole).copy_(rest_of(rows).mm(weight).narrow(0, 0, count - whole));
  return output;
}

at::Tensor stepped_sum(const at::Tensor& left, const at::Tensor& right) {
  const at::NoGradGuard no_grad;
  const std::int64_t count = left.size(0), whole = whole_steps(count);
  if (whole == count) return left.t().mm(right);
  const at::Tensor rest = rest_of(left).t().mm(rest_of(right));
  return whole == 0 ? rest : rest.add_(left.narrow(0, 0, whole).t().mm(right.narrow(0, 0, whole)));
}

}  // namespace thinkvg::nn
