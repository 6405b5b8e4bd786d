// Every aten operator of the CUDA key, computed by the CPU's kernel on the device's memory.
#include "aten.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <unordered_set>

namespace simulated {

using at::Tensor;
using c10::IValue;

Tensor on_host(const Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  auto options = t.options().device(at::kCPU);
  if (t.numel() == 0) return at::empty_strided(t.sizes(), t.strides(), options);
  Tensor owner = t.detach();
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), [owner](void*) {}, options);
}

void finish_current_stream(c10::Device device) {
  c10::impl::VirtualGuardImpl guard(c10::kCUDA);
  guard.synchronizeStream(guard.getStream(device));
}

namespace {

// A result of the CPU's kernel as a tensor of the device.
Tensor on_device(const Tensor& t, c10::Device device) {
  if (!t.defined() || t.is_cuda()) return t;
  Tensor out = at::empty_strided(t.sizes(), t.strides(), t.options().device(device).pinned_memory(false));
  finish_current_stream(device);
  if (t.numel()) on_host(out).copy_(t);
  return out;
}

// A CPU generator for one call: as with Philox, the values follow from the seed and how many calls there were.
at::Generator generator_of_call(at::Generator given) {
  constexpr uint64_t kOffsetOfCall = 4;
  constexpr uint64_t kMix = 0x9E3779B97F4A7C15;
  const uint64_t offset = given.get_offset();
  given.set_offset(offset + kOffsetOfCall);
  return at::detail::createCPUGenerator(given.current_seed() + offset * kMix);
}

// Operators that take a CPU tensor beside the device's: indices.
const std::unordered_set<std::string> kTakesCpuIndices = {"aten::index", "aten::index_put", "aten::index_put_",
                                                          "aten::_index_put_impl_"};

// The one device of a call. Raises where tensors of two devices meet, unless a CPU tensor is a number.
class DeviceOfCall {
 public:
  explicit DeviceOfCall(const std::string& name) : name_(name) {}

  void see(const Tensor& t) {
    if (!t.defined()) return;
    if (t.is_cuda()) see(t.device());
    else if (t.dim() > 0 && t.device().is_cpu()) cpu_ = true;
  }

  void see(c10::Device device) {
    if (!device.is_cuda()) return;
    if (!device.has_index()) device = c10::impl::VirtualGuardImpl(c10::kCUDA).getDevice();
    TORCH_CHECK(!found_ || *found_ == device, "Expected all tensors to be on the same device, but found at least two devices, ",
                *found_, " and ", device, "! (in ", name_, ")");
    found_ = device;
  }

  std::optional<c10::Device> get() const {
    TORCH_CHECK(!found_ || !cpu_ || kTakesCpuIndices.count(name_),
                "Expected all tensors to be on the same device, but found at least two devices, ", *found_,
                " and cpu! (in ", name_, ")");
    return found_;
  }

 private:
  const std::string& name_;
  std::optional<c10::Device> found_;
  bool cpu_ = false;
};

std::optional<c10::Device> device_of(const std::string& name, const std::vector<IValue>& arguments) {
  DeviceOfCall device(name);
  for (const IValue& a : arguments) {
    if (a.isTensor()) device.see(a.toTensor());
    else if (a.isDevice()) device.see(a.toDevice());
    else if (a.isGenerator()) device.see(a.toGenerator().device());
    else if (a.isTensorList()) for (const Tensor& t : a.toTensorVector()) device.see(t);
    else if (a.isList()) { for (const IValue& v : a.toListRef()) if (v.isTensor()) device.see(v.toTensor()); }
  }
  return device.get();
}

bool is_list_of_optionals(const IValue& value) {
  return value.isList() && value.toList().elementType()->kind() == c10::TypeKind::OptionalType;
}

bool is_written(const c10::Argument& argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

// An argument as the CPU's kernel takes it.
IValue host_argument(const IValue& value, const c10::Argument& argument, c10::Device device) {
  if (value.isTensor()) return on_host(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(on_host(t));
    return list;
  }
  if (is_list_of_optionals(value)) {
    c10::List<std::optional<Tensor>> list;
    for (const IValue& v : value.toListRef())
      list.push_back(v.isTensor() ? std::optional<Tensor>(on_host(v.toTensor())) : std::nullopt);
    return list;
  }
  if (value.isDevice() && value.toDevice().is_cuda()) return c10::Device(c10::kCPU);
  if (value.isGenerator()) return generator_of_call(value.toGenerator());
  if (value.isNone() && argument.name() == "generator")
    return generator_of_call(at::globalContext().defaultGenerator(device));
  return value;
}

IValue device_result(const IValue& value, c10::Device device) {
  if (value.isTensor()) return on_device(value.toTensor(), device);
  if (!value.isTensorList()) return value;
  c10::List<Tensor> list;
  for (const Tensor& t : value.toTensorVector()) list.push_back(on_device(t, device));
  return list;
}

}  // namespace

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t n = schema.arguments().size();
  const std::vector<IValue> given = torch::jit::last(*stack, n).vec();
  const std::optional<c10::Device> device = device_of(schema.name(), given);
  if (!device) return op.callBoxed(stack);
  const c10::DeviceGuard guard(*device);
  finish_current_stream(*device);

  // An `out` argument may be resized by the kernel, which memory that it does not own cannot be: it fills another tensor.
  std::vector<Tensor> filled(n);
  for (size_t i = 0; i < n; i++) {
    const c10::Argument& argument = schema.arguments()[i];
    IValue& place = torch::jit::peek(*stack, i, n);
    const bool out = is_written(argument) && argument.kwarg_only() && given[i].isTensor() && given[i].toTensor().defined();
    if (out) place = filled[i] = at::empty({0}, given[i].toTensor().options().device(at::kCPU));
    else place = host_argument(given[i], argument, *device);
  }
  op.callBoxed(stack);

  const size_t results = schema.returns().size();
  for (size_t k = 0; k < results; k++) {
    IValue& result = torch::jit::peek(*stack, k, results);
    const c10::Argument& declared = schema.returns()[k];
    if (!is_written(declared)) {
      result = device_result(result, *device);
      continue;
    }
    for (size_t i = 0; i < n; i++) {  // the argument that this result is
      const c10::Argument& argument = schema.arguments()[i];
      const bool same = is_written(argument) && argument.alias_info()->beforeSets() == declared.alias_info()->beforeSets();
      if (!same || !given[i].isTensor()) continue;
      Tensor written = given[i].toTensor();
      if (filled[i].defined()) {
        if (written.sizes() != filled[i].sizes()) written.resize_(filled[i].sizes());
        if (written.numel()) on_host(written).copy_(filled[i]);
      }
      result = written;
      break;
    }
  }
}

}  // namespace simulated
