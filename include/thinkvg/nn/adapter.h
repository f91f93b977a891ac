#pragma once

// Shape letters: N rows, D width coming in, E width going out, R rank.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace thinkvg::nn {

// A low-rank adapter of a linear layer (LoRA; Hu et al. 2021, arXiv 2106.09685): y += scale * up(down(dropout(x))).
struct LowRankAdapter {
  at::Tensor down;        // [R, D], "lora_A"
  at::Tensor up;          // [E, R], "lora_B"; zero in a new adapter
  double scale = 1.0;     // alpha / R, or alpha / sqrt(R) (rsLoRA; Kalajdzievski 2023)
  double dropout = 0.0;   // share of the inputs that is dropped while a DropoutStream is there
  std::uint64_t key = 0;  // tells this adapter's dropout from the others'

  // What is added to the layer's output for `input` [N, D].
  at::Tensor forward(const at::Tensor& input) const;
};

// While one of these lives, adapters on this thread add nothing: the model is the one below its adapters. Nests.
class AdaptersOff {
 public:
  AdaptersOff();
  ~AdaptersOff();
  AdaptersOff(const AdaptersOff&) = delete;
  AdaptersOff& operator=(const AdaptersOff&) = delete;

 private:
  bool before_;
};
bool adapters_on();

// While one of these lives, forward passes on this thread are training passes: dropout is drawn from the stream of this
// key, the same for the same key. Without one nothing is dropped.
class DropoutStream {
 public:
  explicit DropoutStream(std::uint64_t key);
  ~DropoutStream();
  DropoutStream(const DropoutStream&) = delete;
  DropoutStream& operator=(const DropoutStream&) = delete;

 private:
  std::optional<std::uint64_t> before_;
};

// What the two guards above have set on this thread, to be set again where a forward pass is repeated (checkpoint.h).
class ForwardMode {
 public:
  static ForwardMode current();
  // Sets this mode while `body` runs.
  template <class Body>
  auto run(const Body& body) const {
    const Restore restore(*this);
    return body();
  }

 private:
  class Restore {
   public:
    explicit Restore(const ForwardMode& mode);
    ~Restore();
    Restore(const Restore&) = delete;
    Restore& operator=(const Restore&) = delete;

   private:
    bool adapters_on_;
    std::optional<std::uint64_t> dropout_;
  };
  bool adapters_on_ = true;
  std::optional<std::uint64_t> dropout_;
};

}  // namespace thinkvg::nn
