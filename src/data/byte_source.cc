#include "data/byte_source.h"

#include <arrow/buffer.h>
#include <arrow/io/compressed.h>
#include <arrow/io/file.h>
#include <arrow/result.h>
#include <arrow/util/compression.h>

#include "thinkvg/core/error.h"

namespace thinkvg::data {
namespace {

constexpr std::int64_t kPiece = 1 << 20;

}  // namespace

struct ByteSource::State {
  std::filesystem::path file;
  std::unique_ptr<arrow::util::Codec> codec;
  std::shared_ptr<arrow::io::InputStream> stream;
  std::string piece;

  template <class T>
  T take(arrow::Result<T> result, const char* what) {
    if (!result.ok()) throw_failure("{}: cannot {}: {}", file.string(), what, result.status().message());
    return std::move(result).ValueUnsafe();
  }
};

ByteSource::ByteSource(const std::filesystem::path& file) : state_(std::make_unique<State>()) {
  state_->file = file;
  if (std::filesystem::is_directory(file)) throw_failure("cannot read {}: it is a folder", file.string());
  auto raw = state_->take(arrow::io::ReadableFile::Open(file.string()), "open it");
  const auto magic = state_->take(raw->Read(2), "read it");
  if (!raw->Seek(0).ok()) throw_failure("{}: cannot read it from its beginning", file.string());
  if (magic->size() == 2 && magic->data()[0] == 0x1f && magic->data()[1] == 0x8b) {
    state_->codec = state_->take(arrow::util::Codec::Create(arrow::Compression::GZIP), "unpack gzip");
    state_->stream =
        state_->take(arrow::io::CompressedInputStream::Make(state_->codec.get(), std::move(raw)), "unpack it");
  } else {
    state_->stream = std::move(raw);
  }
}

ByteSource::~ByteSource() = default;

std::string_view ByteSource::next() {
  state_->piece.resize(kPiece);
  const std::int64_t count = state_->take(state_->stream->Read(kPiece, state_->piece.data()), "read it");
  return std::string_view(state_->piece).substr(0, static_cast<std::size_t>(count));
}

std::string read_head(const std::filesystem::path& file, std::size_t size) {
  ByteSource source(file);
  std::string head;
  while (head.size() < size) {
    const std::string_view piece = source.next();
    if (piece.empty()) break;
    head += piece.substr(0, size - head.size());
  }
  return head;
}

std::string read_unpacked(const std::filesystem::path& file) {
  ByteSource source(file);
  std::string content;
  for (std::string_view piece = source.next(); !piece.empty(); piece = source.next()) content += piece;
  return content;
}

}  // namespace thinkvg::data
