#include "checking_device.h"

#include <ATen/ATen.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceType.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace thinkvg::test {
namespace {

constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;
// No address of a program: touching it ends the program.
constexpr std::uintptr_t kFarAway = std::uintptr_t{1} << 60;
std::atomic<long> num_operators{0};

char* far_away(void* memory) { return reinterpret_cast<char*>(reinterpret_cast<std::uintptr_t>(memory) + kFarAway); }
char* near(const void* memory) { return reinterpret_cast<char*>(reinterpret_cast<std::uintptr_t>(memory) - kFarAway); }

struct FarAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &free_memory, device()};
    void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory == nullptr) throw std::bad_alloc();
    return {far_away(memory), memory, &free_memory, device()};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(near(to), near(from), bytes);
  }
  static void free_memory(void* memory) { std::free(memory); }
  static c10::Device device() { return {kType, 0}; }
};

FarAllocator& allocator() {
  static FarAllocator instance;
  return instance;
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Device getDevice() const override { return {kType, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return default_stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return default_stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void synchronizeDevice(const c10::DeviceIndex) const override {}

 private:
  c10::Stream default_stream() const noexcept { return c10::Stream(c10::Stream::DEFAULT, getDevice()); }
};
const c10::impl::DeviceGuardImplRegistrar kGuard(kType, new Guard);

// What autograd asks an accelerator.
struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
};

const bool kRegistered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  c10::register_privateuse1_backend(kCheckingDevice);
  return true;
}();

bool is_far(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kType; }

// The same memory as a tensor of the CPU.
at::Tensor here(const at::Tensor& tensor) {
  const auto options = at::TensorOptions(tensor.scalar_type());
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(near(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(), options);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  const at::ScalarType type = dtype.value_or(at::kFloat);
  const auto bytes = static_cast<std::int64_t>(at::detail::computeStorageNbytes(size, stride, c10::elementSize(type)));
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes,
                                                         allocator().allocate(static_cast<std::size_t>(bytes)),
                                                         &allocator(), /*resizable=*/true)),
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::scalarTypeToTypeMeta(type));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return tensor;
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat>) {
  std::vector<std::int64_t> stride(size.size(), 1);
  for (std::size_t i = size.size(); i-- > 1;) stride[i - 1] = stride[i] * std::max<std::int64_t>(1, size[i]);
  return empty_strided(size, stride, dtype, {}, {}, {});
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  const at::Tensor source = is_far(from) ? here(from) : from;
  at::Tensor target = is_far(to) ? here(to) : to;
  target.copy_(source);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) {
    const at::Tensor fresh = at::empty(from.sizes(), to.options());
    to.unsafeGetTensorImpl()->set_storage_keep_dtype(fresh.storage());
    to.unsafeGetTensorImpl()->set_sizes_and_strides(fresh.sizes(), fresh.strides());
  }
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& tensor) { return here(tensor).item(); }

void check_argument(const c10::OperatorHandle& op, const at::Tensor& tensor) {
  if (!tensor.defined() || is_far(tensor) || tensor.dim() == 0) return;
  throw std::runtime_error(op.schema().name() + ": a tensor of the " + tensor.device().str() +
                           " among those of another device");
}

void run_here(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  ++num_operators;
  const std::size_t count = op.schema().arguments().size();
  for (std::size_t i = stack->size() - count; i < stack->size(); ++i) {
    const c10::IValue& value = (*stack)[i];
    if (value.isTensor()) check_argument(op, value.toTensor());
    if (value.isTensorList())
      for (const at::Tensor& tensor : value.toTensorVector()) check_argument(op, tensor);
    if (value.isOptionalTensorList())
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
        if (tensor) check_argument(op, *tensor);
  }
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_here>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", static_cast<at::Tensor (*)(const at::Tensor&, at::IntArrayRef)>(&at::native::view));
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("_local_scalar_dense", &local_scalar);
}

}  // namespace

at::Device checking_device() { return FarAllocator::device(); }

long num_device_operators() { return num_operators; }

}  // namespace thinkvg::test
