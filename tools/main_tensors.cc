#include "tools/commands.h"

int main(int argc, char** argv) {
  using namespace thinkvg::tools;
  return dispatch({{"init", run_init},
                   {"warmup", run_warmup},
                   {"sft", run_sft},
                   {"grpo", run_grpo},
                   {"generate", run_generate},
                   {"serve", run_serve},
                   {"eval", run_eval}},
                  argc, argv);
}
