#pragma once

namespace thinkvg::nn {

// Whether kernels for inference alone may be taken: no gradient is recorded, and none will be asked of a repetition of
// this pass (checkpoint() repeats one, which must give the same bits).
bool is_inference();

// While it lives, on this thread, a pass without gradient is one that is repeated with gradient.
class RepeatedPass {
 public:
  RepeatedPass();
  ~RepeatedPass();
  RepeatedPass(const RepeatedPass&) = delete;
  RepeatedPass& operator=(const RepeatedPass&) = delete;

 private:
  bool before_;
};

}  // namespace thinkvg::nn
