// Measures a tokenizer: tokenizer_speed FOLDER FILE [THREADS]   prints JSON
//   FILE: texts as tests/data/tokenizers/strings.bin has them (a number, then lengths and bytes).
// Or writes the ids of all texts: tokenizer_speed FOLDER FILE --ids OUT
#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>

#include "thinkvg/core/files.h"
#include "thinkvg/text/tokenizer.h"

namespace {

using Clock = std::chrono::steady_clock;

std::vector<std::string> read_texts(const std::string& file) {
  const std::string bytes = thinkvg::read_file(file);
  std::size_t at = 0;
  const auto number = [&] {
    std::int32_t value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    at += sizeof value;
    return static_cast<std::size_t>(value);
  };
  std::vector<std::string> texts(number());
  for (std::string& text : texts) {
    const std::size_t size = number();
    text = bytes.substr(at, size);
    at += size;
  }
  return texts;
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 3) throw std::invalid_argument("usage: tokenizer_speed FOLDER FILE [THREADS | --ids OUT]");
    const std::vector<std::string> texts = read_texts(argv[2]);
    const auto load_start = Clock::now();
    const auto tokenizer = thinkvg::text::load_tokenizer(argv[1]);
    const double load_seconds = seconds_since(load_start);
    if (argc == 5 && std::string(argv[3]) == "--ids") {
      std::ofstream out(argv[4], std::ios::binary);
      for (const std::string& text : texts) {
        const auto ids = tokenizer->encode(text);
        std::vector<std::int32_t> row = {static_cast<std::int32_t>(ids.size())};
        row.insert(row.end(), ids.begin(), ids.end());
        out.write(reinterpret_cast<const char*>(row.data()), static_cast<std::streamsize>(row.size() * sizeof row[0]));
      }
      return out.flush() ? 0 : 1;
    }
    const int num_threads = argc > 3 ? std::stoi(argv[3]) : 1;
    std::size_t num_bytes = 0, num_ids = 0;
    for (const std::string& text : texts) num_bytes += text.size();
    double encode_seconds = 1e30, batch_seconds = 1e30, decode_seconds = 1e30;
    std::vector<std::vector<std::int64_t>> ids(texts.size());
    for (int round = 0; round < 5; ++round) {
      auto start = Clock::now();
      for (std::size_t i = 0; i < texts.size(); ++i) ids[i] = tokenizer->encode(texts[i]);
      encode_seconds = std::min(encode_seconds, seconds_since(start));
      start = Clock::now();
      if (tokenizer->encode_batch(texts, num_threads) != ids) throw std::runtime_error("batch and single differ");
      batch_seconds = std::min(batch_seconds, seconds_since(start));
      start = Clock::now();
      for (const auto& row : ids) tokenizer->decode(row);
      decode_seconds = std::min(decode_seconds, seconds_since(start));
    }
    for (const auto& row : ids) num_ids += row.size();
    const double megabytes = static_cast<double>(num_bytes) / 1e6;
    std::cout << "{\"ids\": " << num_ids << ", \"load_s\": " << load_seconds
              << ", \"encode_mb_s\": " << megabytes / encode_seconds
              << ", \"batch_mb_s\": " << megabytes / batch_seconds
              << ", \"decode_mb_s\": " << megabytes / decode_seconds << "}\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
