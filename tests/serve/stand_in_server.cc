// A server whose answers are written beforehand: for looking at the page and for clients of other languages, without a
// model. `serve_stand_in [PORT [MILLISECONDS A BYTE]]` prints its address and runs until SIGTERM.

#include <spdlog/fmt/fmt.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "tests/serve/fake_backend.h"
#include "thinkvg/core/interrupt.h"
#include "thinkvg/serve/server.h"

int main(int argc, char** argv) {
  using namespace thinkvg;
  serve::ServeOptions options;
  options.port = argc > 1 ? std::atoi(argv[1]) : 0;
  const auto step = std::chrono::milliseconds(argc > 2 ? std::atoi(argv[2]) : 0);
  const InterruptGuard guard;
  serve::Server server(options, "stand-in", std::make_shared<test::FakeBackend>(test::kRadiographAnswer, step));
  server.start();
  fmt::print("{}\n", server.url());
  std::fflush(stdout);
  while (!interrupt_requested()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  server.stop();
  return 0;
}
