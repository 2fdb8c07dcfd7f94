// Every operator's schema, one line each. Kernels register themselves at the foot of csrc/cpu/<op>.cpp and
// csrc/cuda/<op>_cuda.cpp; fake kernels and autograd live in fastinv/ops/<op>.py.
#include "common/stable.h"

namespace fastinv {

static std::string cpu_isa_op() { return isa_name(cpu_isa()); }

// All instruction sets that are built in and that this machine runs, best last, separated by spaces.
static std::string cpu_isas_op() {
  std::string names;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (cpu_isa_available(isa)) names += (names.empty() ? "" : " ") + std::string(isa_name(isa));
  }
  return names;
}

}  // namespace fastinv

STABLE_TORCH_LIBRARY(fastinv, m) {
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastinv, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fastinv::cpu_isa_op));
  m.impl("cpu_isas", TORCH_BOX(&fastinv::cpu_isas_op));
}
