#pragma once

namespace thinkvg::nn::cpu {

// Whether the processor multiplies bf16 matrices faster than fp32 ones, so that LibTorch's own bf16 products are best:
// with AMX, or as AMD's do from family 1Ah (Zen 5) on. Others have bf16 dot products at the rate of fp32 or below.
bool has_fast_bf16_products();

}  // namespace thinkvg::nn::cpu

// MKL, which LibTorch brings, takes AVX-512 on processors of other makers only where this says so: on AMD's from Zen 4
// on its fp32 products are then up to twice as fast. MKL still looks at what the processor can. This one takes the
// place of MKL's own function of the name in programs that link this library.
extern "C" __attribute__((weak, visibility("default"))) int mkl_serv_intel_cpu_true();
