// What the files of the simulated device's operators share: views of device memory as CPU tensors, and the order of work.
#pragma once
#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

namespace simulated {

// A CPU tensor over a device tensor's memory; other tensors as they are. Work queued on the device's current stream must
// be done first.
at::Tensor on_host(const at::Tensor& t);

// Performs what is queued on the current stream of a device: a kernel starts after it.
void finish_current_stream(c10::Device device);

// Registered for one operator each by install().
void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack);
at::Tensor& copy(at::Tensor& self, const at::Tensor& source, bool non_blocking);
at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                 std::optional<at::Device> device, std::optional<bool> pinned, std::optional<at::MemoryFormat> format);
at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout> layout, std::optional<at::Device> device, std::optional<bool> pinned);

// Counters in a file that tests write and read while the process runs. An allocation is one tensor's.
struct Control {
  int64_t allocations;  // so far
  int64_t fail_at;      // the allocation of this number raises OutOfMemoryError; 0 for none
  int64_t failed;       // how many did
  int64_t on_device[8];  // so far, of each device
};

}  // namespace simulated
