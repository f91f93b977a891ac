#include "tools/commands.h"

int main(int argc, char** argv) {
  using namespace thinkvg::tools;
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
