#include "thinkvg/models/safetensors.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"
#include "thinkvg/core/json.h"

namespace thinkvg::models {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");

constexpr const char* kWeights = "model.safetensors";
constexpr const char* kWeightsIndex = "model.safetensors.index.json";
constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kLargestHeader = 100'000'000;  // as the reference implementation

struct DtypeName {
  const char* name;
  at::ScalarType type;
};
constexpr DtypeName kDtypes[] = {
    {"F64", at::kDouble},
    {"F32", at::kFloat},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"I64", at::kLong},
    {"I32", at::kInt},
    {"I16", at::kShort},
    {"I8", at::kChar},
    {"U8", at::kByte},
    {"BOOL", at::kBool},
    {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E5M2", at::kFloat8_e5m2},
};

std::string reason() { return std::strerror(errno); }

class FileDescriptor {
 public:
  FileDescriptor(const std::filesystem::path& file, int flags)
      : value_(::open(file.c_str(), flags | O_CLOEXEC, 0666)) {}
  ~FileDescriptor() { close(); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return value_; }
  int close() {
    const int result = value_ >= 0 ? ::close(value_) : 0;
    value_ = -1;
    return result;
  }

 private:
  int value_;
};

// A private, copy-on-write view of a whole file.
class Mapping {
 public:
  explicit Mapping(const std::filesystem::path& file) {
    const FileDescriptor descriptor(file, O_RDONLY);
    struct stat status {};
    if (descriptor.get() < 0 || ::fstat(descriptor.get(), &status) != 0) {
      throw_failure("{}: cannot be opened: {}", file.string(), reason());
    }
    if (!S_ISREG(status.st_mode)) throw_failure("{}: not a regular file", file.string());
    size_ = static_cast<std::uint64_t>(status.st_size);
    if (size_ == 0) return;
    void* address = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, descriptor.get(), 0);
    if (address == MAP_FAILED) throw_failure("{}: cannot be mapped into memory: {}", file.string(), reason());
    data_ = static_cast<char*>(address);
  }
  ~Mapping() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  char* data() const { return data_; }
  std::uint64_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  std::uint64_t size_ = 0;
};

// Tells tensors that look into a mapping from others: it is the deleter of their storage.
void release_mapping(void* mapping) { delete static_cast<std::shared_ptr<const Mapping>*>(mapping); }

// Gives back the memory of whole pages of a mapping that nobody has written to; they are read again when touched.
void forget_pages(const char* begin, std::uint64_t size) {
  static const auto kPage = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t first = (address + kPage - 1) / kPage * kPage, end = (address + size) / kPage * kPage;
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

struct Entry {
  at::ScalarType type{};
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

bool is_count(const Json& value) { return value.is_number_unsigned(); }

Entry read_entry(const Json& value, const std::string& where) {
  const bool complete = value.is_object() && value.contains("dtype") && value.at("dtype").is_string() &&
                        value.contains("shape") && value.at("shape").is_array() && value.contains("data_offsets") &&
                        value.at("data_offsets").is_array() && value.at("data_offsets").size() == 2;
  const auto counts = [](const Json& list) { return std::all_of(list.begin(), list.end(), is_count); };
  if (!complete || !counts(value.at("shape")) || !counts(value.at("data_offsets"))) {
    throw_failure("{}: expected dtype, shape and data_offsets, got {}", where, value.dump());
  }
  Entry entry;
  const auto name = value.at("dtype").get<std::string>();
  const auto* const dtype =
      std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](const DtypeName& known) { return name == known.name; });
  if (dtype == std::end(kDtypes)) throw_failure("{}: unknown dtype '{}'", where, name);
  entry.type = dtype->type;
  entry.begin = value.at("data_offsets")[0].get<std::uint64_t>();
  entry.end = value.at("data_offsets")[1].get<std::uint64_t>();
  std::uint64_t num_bytes = c10::elementSize(entry.type);
  for (const Json& side : value.at("shape")) {
    const auto length = side.get<std::uint64_t>();
    if (length != 0 && num_bytes > std::uint64_t{std::numeric_limits<std::int64_t>::max()} / length) {
      throw_failure("{}: the shape {} is too large", where, value.at("shape").dump());
    }
    num_bytes *= length;
    entry.shape.push_back(static_cast<std::int64_t>(length));
  }
  if (entry.begin > entry.end || entry.end - entry.begin != num_bytes) {
    throw_failure("{}: {} of {} needs {} bytes, but the offsets are {} to {}", where, name, value.at("shape").dump(),
                  num_bytes, entry.begin, entry.end);
  }
  return entry;
}

// The tensors must lie end to end and fill the file, as the format demands: this finds truncated files, too.
void check_coverage(const std::map<std::string, Entry>& entries, std::uint64_t num_bytes, const std::string& file) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& [name, entry] : entries) {
    if (entry.end > num_bytes) {
      throw_failure("{}: tensor '{}' reaches to byte {} of the data, but the file holds {}: is it truncated?", file,
                    name, entry.end, num_bytes);
    }
    ranges.emplace_back(entry.begin, entry.end);
  }
  std::sort(ranges.begin(), ranges.end());
  std::uint64_t reached = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin != reached) throw_failure("{}: tensors overlap or leave a gap at byte {} of the data", file, reached);
    reached = end;
  }
  if (reached != num_bytes) {
    throw_failure("{}: the tensors end at byte {} of the data, but the file holds {}", file, reached, num_bytes);
  }
}

void write_all(int descriptor, const char* data, std::uint64_t size, const std::filesystem::path& file) {
  while (size > 0) {
    const ssize_t written = ::write(descriptor, data, std::min<std::uint64_t>(size, 1U << 30U));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw_failure("{}: cannot be written: {}", file.string(), reason());
    data += written;
    size -= static_cast<std::uint64_t>(written);
  }
}

// Whether a file of a folder is (a part of) the model's weights.
bool is_weights_file(const std::string& name) {
  return name == kWeights || name == kWeightsIndex || (name.starts_with("model-") && name.ends_with(".safetensors"));
}

bool holds_weights(const FolderContent& content) {
  return std::any_of(content.tensors.begin(), content.tensors.end(),
                     [](const auto& item) { return is_weights_file(item.first); });
}

// Weights that were written in other files before would be read in place of the new ones, or be found beside them.
void remove_older_weights(const FolderContent& content, const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (is_weights_file(name) && !content.tensors.contains(name) && !content.texts.contains(name))
      std::filesystem::remove(entry.path());
  }
}

const char* dtype_name(const std::string& tensor, at::ScalarType type) {
  for (const DtypeName& known : kDtypes) {
    if (known.type == type) return known.name;
  }
  throw_invalid("write_safetensors: tensor '{}' has dtype {}, which the format does not know", tensor,
                c10::toString(type));
}

at::ScalarType written_type(const at::Tensor& tensor, std::optional<at::ScalarType> dtype) {
  return dtype && tensor.is_floating_point() ? *dtype : tensor.scalar_type();
}

std::uint64_t written_bytes(const at::Tensor& tensor, std::optional<at::ScalarType> dtype) {
  return static_cast<std::uint64_t>(tensor.numel()) * c10::elementSize(written_type(tensor, dtype));
}

}  // namespace

std::map<std::string, at::Tensor> read_safetensors(const std::filesystem::path& file) {
  const auto mapping = std::make_shared<const Mapping>(file);
  const std::string name = file.string();
  if (mapping->size() < kLengthBytes) {
    throw_failure("{}: {} bytes are too few for a safetensors file", name, mapping->size());
  }
  std::uint64_t header_length = 0;
  std::memcpy(&header_length, mapping->data(), kLengthBytes);
  if (header_length > kLargestHeader || header_length > mapping->size() - kLengthBytes) {
    throw_failure("{}: the header should have {} bytes, the file has {}: truncated, or not a safetensors file", name,
                  header_length, mapping->size());
  }
  const char* text = mapping->data() + kLengthBytes;
  const Json header = Json::parse(text, text + header_length, nullptr, false);
  if (!header.is_object()) throw_failure("{}: the header is not a JSON object: not a safetensors file", name);

  std::map<std::string, Entry> entries;
  for (const auto& [key, value] : header.items()) {
    if (key != "__metadata__") entries.emplace(key, read_entry(value, fmt::format("{}: tensor '{}'", name, key)));
  }
  const std::uint64_t data_start = kLengthBytes + header_length;
  check_coverage(entries, mapping->size() - data_start, name);

  std::map<std::string, at::Tensor> tensors;
  for (const auto& [key, entry] : entries) {
    char* data = mapping->data() + data_start + entry.begin;
    const auto options = at::TensorOptions(entry.type);
    if (entry.begin == entry.end) {
      tensors.emplace(key, at::empty(entry.shape, options));
    } else if (reinterpret_cast<std::uintptr_t>(data) % c10::elementSize(entry.type) == 0) {
      tensors.emplace(key, at::for_blob(data, entry.shape)
                               .context(new std::shared_ptr<const Mapping>(mapping), release_mapping)
                               .options(options)
                               .make_tensor());
    } else {
      at::Tensor copy = at::empty(entry.shape, options);
      std::memcpy(copy.mutable_data_ptr(), data, entry.end - entry.begin);
      forget_pages(data, entry.end - entry.begin);
      tensors.emplace(key, std::move(copy));
    }
  }
  return tensors;
}

at::Tensor converted(const at::Tensor& tensor, at::ScalarType dtype) {
  if (tensor.scalar_type() == dtype) return tensor;
  at::Tensor result = tensor.to(dtype);
  if (tensor.is_contiguous() && tensor.storage().data_ptr().get_deleter() == &release_mapping)
    forget_pages(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  return result;
}

void write_safetensors(const NamedTensors& tensors, const std::filesystem::path& file,
                       std::optional<at::ScalarType> dtype) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined()) throw_invalid("write_safetensors: tensor '{}' is undefined", name);
    if (header.contains(name)) throw_invalid("write_safetensors: two tensors are called '{}'", name);
    const at::ScalarType type = written_type(tensor, dtype);
    const std::uint64_t end = offset + written_bytes(tensor, dtype);
    header[name] = {
        {"dtype", dtype_name(name, type)}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // keeps the data aligned
  const std::uint64_t length = text.size();

  std::filesystem::path temporary = file;
  temporary += fmt::format(".{}.tmp", ::getpid());
  FileDescriptor descriptor(temporary, O_WRONLY | O_CREAT | O_TRUNC);
  if (descriptor.get() < 0) throw_failure("{}: cannot be created: {}", file.string(), reason());
  try {
    write_all(descriptor.get(), reinterpret_cast<const char*>(&length), kLengthBytes, file);
    write_all(descriptor.get(), text.data(), text.size(), file);
    for (const auto& [name, tensor] : tensors) {
      const at::Tensor plain = tensor.detach().to(at::kCPU).to(written_type(tensor, dtype)).contiguous();
      if (plain.nbytes() == 0) continue;
      if (plain.scalar_type() == at::kHalf && tensor.scalar_type() != at::kHalf &&
          at::isinf(plain).any().item<bool>() && !at::isinf(tensor).any().item<bool>())
        throw_failure("{}: the tensor '{}' holds numbers above 65504, the largest of float16; use bfloat16",
                      file.string(), name);
      write_all(descriptor.get(), static_cast<const char*>(plain.const_data_ptr()), plain.nbytes(), file);
    }
    if (::fsync(descriptor.get()) != 0 || descriptor.close() != 0) {
      throw_failure("{}: cannot be written: {}", file.string(), reason());
    }
    std::filesystem::rename(temporary, file);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
}

void write_content(const FolderContent& whole, const std::filesystem::path& folder) {
  const FolderContent content = split_weights(whole);
  for (const auto& [name, tensors] : content.tensors) {
    std::filesystem::create_directories((folder / name).parent_path());
    write_safetensors(tensors, folder / name, content.dtype);
  }
  for (const auto& [name, text] : content.texts) {
    std::filesystem::create_directories((folder / name).parent_path());
    write_file_atomically(folder / name, text);
  }
  if (holds_weights(content)) remove_older_weights(content, folder);
}

FolderContent split_weights(FolderContent content) {
  if (content.max_file_bytes < 1)
    throw_invalid("files of weights need room for at least one byte, not {}", content.max_file_bytes);
  const auto whole = content.tensors.find(kWeights);
  if (whole == content.tensors.end()) return content;
  std::vector<NamedTensors> shards(1);
  std::uint64_t total = 0, filled = 0;
  std::int64_t parameters = 0;
  for (auto& [name, tensor] : whole->second) {
    const std::uint64_t bytes = written_bytes(tensor, content.dtype);
    if (!shards.back().empty() && filled + bytes > static_cast<std::uint64_t>(content.max_file_bytes)) {
      shards.emplace_back();
      filled = 0;
    }
    filled += bytes;
    total += bytes;
    parameters += tensor.numel();
    shards.back().emplace_back(name, tensor);
  }
  if (shards.size() == 1) return content;
  content.tensors.erase(whole);
  Json files = Json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    for (const auto& [name, tensor] : shards[i]) files[name] = file;
    content.tensors[file] = std::move(shards[i]);
  }
  const Json index = {{"metadata", {{"total_parameters", parameters}, {"total_size", total}}}, {"weight_map", files}};
  content.texts[kWeightsIndex] = index.dump(2) + "\n";
  return content;
}

FolderContent copy_content(const FolderContent& content) {
  FolderContent copy{{}, content.texts, content.dtype, content.max_file_bytes};
  for (const auto& [file, tensors] : content.tensors) {
    NamedTensors& copies = copy.tensors[file];
    for (const auto& [name, tensor] : tensors)
      copies.emplace_back(
          name,
          at::empty(tensor.sizes(), tensor.options().device(at::kCPU).requires_grad(false)).copy_(tensor.detach()));
  }
  return copy;
}

}  // namespace thinkvg::models
