#include "tools/commands.h"

int main(int argc, char** argv) {
  using namespace thinkvg::tools;
  return dispatch({{"phantom", run_phantom}, {"inspect", run_inspect}, {"report", run_report}}, argc, argv);
}
