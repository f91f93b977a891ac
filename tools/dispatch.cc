#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <string>

#include "thinkvg/core/log.h"
#include "tools/commands.h"

namespace thinkvg::tools {

const std::vector<CommandInfo>& command_list() {
  static const std::vector<CommandInfo> kCommands = {
      {"phantom", "write a synthetic data set of radiograph-like pictures with grounded questions", Program::pictures},
      {"inspect", "look a data set over: bad rows, missing pictures, wrong box frames", Program::pictures},
      {"init", "make a new small model with its tokenizer", Program::tensors},
      {"warmup", "teach a new vision tower what is where, from region labels", Program::tensors},
      {"check", "what a run of sft or grpo would do: settings, data, an example, parameters, memory", Program::light},
      {"sft", "supervised fine-tuning", Program::tensors},
      {"grpo", "reinforcement with verifiable grounding and answer rewards", Program::tensors},
      {"generate", "ask a model about a picture", Program::tensors},
      {"serve", "serve a model: an OpenAI-compatible API, and a page to ask on", Program::tensors},
      {"eval", "score a model on a data set", Program::tensors},
      {"score", "score predictions, or the rewards of logged completions (--rollouts FILE), without a model",
       Program::light},
      {"export", "write a model folder with adapters merged, in another dtype or in shards", Program::tensors},
      {"bench", "measure how fast a model reads, writes and trains on this machine", Program::tensors},
      {"report", "write an HTML report of one or several runs", Program::pictures},
  };
  return kCommands;
}

namespace {

// LibTorch's errors go on with a stack trace, which says nothing to a user.
std::string without_stack_trace(const char* text) {
  const std::string whole = text;
  return whole.substr(0, whole.find("\nException raised from "));
}

}  // namespace

int replace_process(const std::string& program, const Arguments& arguments) {
  std::error_code ignored;  // without /proc the programs are looked for in the working directory, and reported missing
  const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const auto& folder : {here, here.parent_path() / "libexec" / "thinkvg"}) {
    const std::string file = (folder / program).string();
    if (!std::filesystem::exists(file)) continue;
    std::vector<char*> texts;
    Arguments all = arguments;
    all.insert(all.begin(), "thinkvg");
    for (std::string& text : all) texts.push_back(text.data());
    texts.push_back(nullptr);
    execv(file.c_str(), texts.data());
    fmt::print(stderr, "thinkvg: cannot start {}: {}\n", file, std::strerror(errno));
    return 1;
  }
  fmt::print(stderr, "thinkvg: the program {} is missing beside {}; install or build it again\n", program,
             (here / "thinkvg").string());
  return 1;
}

int dispatch(const std::vector<std::pair<std::string, CommandFunction>>& functions, int argc, char** argv) {
  set_up_logging();
  const std::string name = argc > 1 ? argv[1] : "";
  for (const auto& [command, function] : functions) {
    if (command != name) continue;
    try {
      return function(Arguments(argv + 2, argv + argc));
    } catch (const std::invalid_argument& error) {
      std::fprintf(stderr, "thinkvg %s: %s\n", name.c_str(), error.what());
      return 2;
    } catch (const std::bad_alloc&) {
      std::fprintf(stderr, "thinkvg %s: out of memory\n", name.c_str());
      return 1;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "thinkvg %s: %s\n", name.c_str(), without_stack_trace(error.what()).c_str());
      return 1;
    }
  }
  std::fprintf(stderr, "thinkvg: this program has no command '%s'\n", name.c_str());
  return 2;
}

}  // namespace thinkvg::tools
