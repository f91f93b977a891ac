#include <ATen/ATen.h>
#include <thinkvg/grounding/box.h>
#include <thinkvg/nn/token_stats.h>

#include <cstdio>

int main() {
  const auto frame = thinkvg::grounding::BoxFrame::letterbox(336);
  const double iou = thinkvg::grounding::iou({0, 0, 20, 20, frame}, {10, 0, 30, 20, frame});
  const auto stats = thinkvg::nn::token_stats(at::zeros({1, 8}), at::zeros({1}, at::kLong));
  std::printf("iou %.4f entropy %.4f\n", iou, stats.entropy.item<double>());
}
