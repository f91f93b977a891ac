// Runs the fuzz function over the files of a corpus and over changed copies of them, the same ones every time:
//   response_replay FOLDER ROUNDS

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "thinkvg/core/files.h"
#include "thinkvg/core/random.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size);

namespace {

void run(const std::string& text) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const unsigned char*>(text.data()), text.size());
}

// A few random edits: cut, repeat, swap in a piece of another text, change a byte.
std::string changed(thinkvg::RandomStream& random, const std::vector<std::string>& texts) {
  std::string text = texts[random.below(texts.size())];
  for (std::int64_t edits = random.between(1, 6); edits > 0; --edits) {
    const std::size_t at = random.below(text.size() + 1), length = random.below(text.size() - at + 1);
    const std::string& other = texts[random.below(texts.size())];
    const std::size_t from = random.below(other.size() + 1);
    switch (random.below(5)) {
      case 0:
        text.erase(at, length);
        break;
      case 1:
        text.insert(at, text.substr(at, std::min<std::size_t>(length, 300)));
        break;
      case 2:
        text.replace(at, length, other.substr(from, random.below(120)));
        break;
      case 3:
        text.insert(at, other.substr(from, random.below(40)));
        break;
      default:
        if (at < text.size()) text[at] = static_cast<char>(random.below(256));
    }
    if (text.size() > 20'000) text.resize(20'000);
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: response_replay FOLDER ROUNDS\n";
    return 2;
  }
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::vector<std::string> texts;
  for (const auto& file : files) texts.push_back(thinkvg::read_file(file));
  if (texts.empty()) {
    std::cerr << "the corpus is empty\n";
    return 1;
  }
  for (const std::string& text : texts) run(text);
  thinkvg::RandomStream random({2024});
  const long rounds = std::atol(argv[2]);
  for (long i = 0; i < rounds; ++i) run(changed(random, texts));
  std::cout << texts.size() << " texts and " << rounds << " changed ones\n";
  return 0;
}
