#include "nn/cpu/processor.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <filesystem>

namespace thinkvg::nn {
namespace {

// LibTorch's own call must find this program's function, not MKL's.
TEST(Processor, MklAsksThisProgram) {
  void* found = dlsym(RTLD_DEFAULT, "mkl_serv_intel_cpu_true");
  ASSERT_NE(found, nullptr);
  Dl_info place{};
  ASSERT_NE(dladdr(found, &place), 0);
  EXPECT_TRUE(std::filesystem::equivalent(place.dli_fname, "/proc/self/exe")) << place.dli_fname;
  EXPECT_EQ(reinterpret_cast<int (*)()>(found)(), 1);
}

}  // namespace
}  // namespace thinkvg::nn
