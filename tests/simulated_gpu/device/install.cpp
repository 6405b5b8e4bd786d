// Registers the operators of the simulated device: called once, by device/__init__.py.
#include "aten.h"

namespace {

// There is one way to compute attention here, from single operators.
void choose_math(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  torch::jit::drop(*stack, op.schema().arguments().size());
  stack->emplace_back(static_cast<int64_t>(0));  // sdp::SDPBackend::math
}

}  // namespace

// `names`: operators with their overload, "aten::add.Tensor", that the CPU's kernels compute.
extern "C" void simulated_install(const char** names, int count) {
  static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  for (int i = 0; i < count; i++)
    library.impl(names[i], torch::CppFunction::makeFromBoxedFunction<&simulated::run_on_cpu>());
  library.impl("_fused_sdp_choice", torch::CppFunction::makeFromBoxedFunction<&choose_math>());
  library.impl("copy_", &simulated::copy);
  library.impl("empty.memory_format", &simulated::empty);
  library.impl("empty_strided", &simulated::empty_strided);
}
