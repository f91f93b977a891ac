#include "thinkvg/nn/adapter.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "thinkvg/core/random.h"
#include "thinkvg/nn/linear.h"

namespace thinkvg::nn {
namespace {

thread_local bool adapters_are_on = true;
thread_local std::optional<std::uint64_t> dropout_key;

at::Tensor drop(const at::Tensor& input, double share, std::uint64_t key) {
  at::Generator generator = at::detail::createCPUGenerator(RandomStream({*dropout_key, key}).next_u64());
  // Drawn on the CPU, so that the choice does not depend on the device.
  const at::Tensor kept = at::empty(input.sizes(), input.options().device(at::kCPU).requires_grad(false))
                              .bernoulli_(1.0 - share, generator)
                              .div_(1.0 - share);
  return input * kept.to(input.device());
}

}  // namespace

at::Tensor LowRankAdapter::forward(const at::Tensor& input) const {
  const at::Tensor kept = dropout > 0 && dropout_key ? drop(input, dropout, key) : input;
  return nn::linear(nn::linear(kept, down), up) * scale;
}

AdaptersOff::AdaptersOff() : before_(adapters_are_on) { adapters_are_on = false; }
AdaptersOff::~AdaptersOff() { adapters_are_on = before_; }
bool adapters_on() { return adapters_are_on; }

DropoutStream::DropoutStream(std::uint64_t key) : before_(dropout_key) { dropout_key = key; }
DropoutStream::~DropoutStream() { dropout_key = before_; }

ForwardMode ForwardMode::current() {
  ForwardMode mode;
  mode.adapters_on_ = adapters_are_on;
  mode.dropout_ = dropout_key;
  return mode;
}

ForwardMode::Restore::Restore(const ForwardMode& mode) : adapters_on_(adapters_are_on), dropout_(dropout_key) {
  adapters_are_on = mode.adapters_on_;
  dropout_key = mode.dropout_;
}
ForwardMode::Restore::~Restore() {
  adapters_are_on = adapters_on_;
  dropout_key = dropout_;
}

}  // namespace thinkvg::nn
