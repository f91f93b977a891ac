#include "nn/cpu/processor.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace thinkvg::nn::cpu {

#ifdef __x86_64__
namespace {

struct Registers {
  unsigned int a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned int leaf, unsigned int subleaf) {
  Registers result;
  if (__get_cpuid_count(leaf, subleaf, &result.a, &result.b, &result.c, &result.d) == 0) return {};
  return result;
}

bool is_amd(const Registers& vendor) {
  return vendor.b == signature_AMD_ebx && vendor.d == signature_AMD_edx && vendor.c == signature_AMD_ecx;
}

}  // namespace

bool has_fast_bf16_products() {
  constexpr unsigned int kAmxBf16 = 1U << 22U, kAvx512Bf16 = 1U << 5U, kBaseFamily = 0xf, kZen5 = 0x1a;
  if ((cpuid(7, 0).d & kAmxBf16) != 0) return true;
  const unsigned int signature = cpuid(1, 0).a;
  unsigned int family = (signature >> 8U) & 0xfU;
  if (family == kBaseFamily) family += (signature >> 20U) & 0xffU;
  return is_amd(cpuid(0, 0)) && family >= kZen5 && (cpuid(7, 1).a & kAvx512Bf16) != 0;
}
#else
bool has_fast_bf16_products() { return true; }  // not known: LibTorch's own choice
#endif

}  // namespace thinkvg::nn::cpu

int mkl_serv_intel_cpu_true() { return 1; }
