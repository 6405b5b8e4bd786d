// New tensors and copies of the simulated device: torch's own allocator and transfers, with memory that holds NaN until
// it is written, and allocations that can be told to fail.
#include "aten.h"

#include <ATen/cuda/EmptyTensor.h>
#include <ATen/ops/copy_native.h>
#include <c10/cuda/CUDAStream.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

namespace simulated {

namespace {

constexpr int kPoison = 0xFF;  // NaN in float64, 32, 16, bfloat16 and 8-bit floats

Control* control() {
  static Control* mapped = [] {
    static Control unused{};
    const char* path = std::getenv("SIMULATED_GPU_CONTROL");
    const int file = path ? open(path, O_RDWR) : -1;
    if (file < 0) return &unused;
    void* memory = mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return memory == MAP_FAILED ? &unused : static_cast<Control*>(memory);
  }();
  return mapped;
}

void count_allocation(std::optional<at::Device> device) {
  Control* c = control();
  const bool known = device && device->has_index();
  __atomic_add_fetch(&c->on_device[known ? device->index() : c10::cuda::current_device()], 1, __ATOMIC_SEQ_CST);
  const int64_t number = __atomic_add_fetch(&c->allocations, 1, __ATOMIC_SEQ_CST);
  if (number != c->fail_at) return;
  c->failed++;
  TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Allocation ", number, " was told to fail.");
}

at::Tensor poisoned(at::Tensor t) {
  if (t.numel()) {
    const c10::DeviceGuard guard(t.device());  // whose default stream the default stream is
    const auto stream = c10::cuda::getCurrentCUDAStream();
    cudaMemsetAsync(t.data_ptr(), kPoison, t.storage().nbytes(), stream);
  }
  return t;
}

}  // namespace

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                 std::optional<at::Device> device, std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
  count_allocation(device);
  return poisoned(at::detail::empty_cuda(size, dtype, layout, device, pinned, format));
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout> layout, std::optional<at::Device> device, std::optional<bool> pinned) {
  count_allocation(device);
  return poisoned(at::detail::empty_strided_cuda(size, stride, dtype, layout, device, pinned));
}

// Between devices it is torch's own transfer, through cudaMemcpyAsync on the current stream; on one device a kernel.
at::Tensor& copy(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  if (self.device() != source.device()) return at::native::copy_(self, source, non_blocking);
  finish_current_stream(self.device());
  on_host(self).copy_(on_host(source));
  return self;
}

}  // namespace simulated
