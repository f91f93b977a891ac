#include <string_view>

#include "tools/commands.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace {

// The tensors of a step are freed, and the next step asks for the same again. glibc gives the large ones back to the
// kernel each time, which fills them with zeros anew: a tenth of a training step and more. A server gives back what it
// does not need.
void keep_freed_memory(std::string_view command) {
#ifdef __GLIBC__
  if (command == "serve" || command == "export") return;
  constexpr int kNever = -1, kLargest = 1 << 30, kLargestOnce = 32 << 20, kAtATime = 64 << 20;
  if (mallopt(M_MMAP_THRESHOLD, kLargest) == 0) mallopt(M_MMAP_THRESHOLD, kLargestOnce);  // older ones take no more
  mallopt(M_TRIM_THRESHOLD, kNever);
  mallopt(M_TOP_PAD, kAtATime);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  using namespace thinkvg::tools;
  if (argc > 1) keep_freed_memory(argv[1]);
  return dispatch({{"init", run_init},
                   {"warmup", run_warmup},
                   {"check", run_check},
                   {"sft", run_sft},
                   {"grpo", run_grpo},
                   {"generate", run_generate},
                   {"serve", run_serve},
                   {"eval", run_eval},
                   {"export", run_export},
                   {"bench", run_bench}},
                  argc, argv);
}
